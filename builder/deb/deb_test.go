package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/testkit"
)

// tree makes a small tree as `make install` does, but with a strict umask.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"usr/lib/halogen/halogen": "program", "usr/share/doc/halogen/copyright": "text\n", "usr/share/doc/halogen/a name with spaces": "",
		"usr/share/" + strings.Repeat("long/", 30) + "name": "x",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if content == "program" {
			mode = 0o700 | os.ModeSetuid
		}
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../lib/halogen/halogen", filepath.Join(root, "usr/bin/halogen")); err != nil {
		t.Fatal(err)
	}
	return root
}

func make1(t *testing.T, root, out string, args ...string) error {
	t.Helper()
	return run(append([]string{"-root", root, "-out", out, "-version", "1.2-rc1+20261128.abc", "-date", "1795900000", "-maintainer", "A B <a@example.org>"}, args...))
}

// TestPackage has dpkg-deb read the package.
func TestPackage(t *testing.T) {
	root, dir := tree(t), t.TempDir()
	out := filepath.Join(dir, "a.deb")
	if err := make1(t, root, out); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{"Package": "halogen", "Version": "1.2~rc1+20261128.abc", "Architecture": "amd64", "Maintainer": "A B <a@example.org>", "Installed-Size": "42", "Depends": "erofs-utils"} {
		if have := strings.TrimSpace(testkit.Run(t, "dpkg-deb", "--field", out, field)); have != want {
			t.Errorf("%s: %q, want %q", field, have, want)
		}
	}
	contents := testkit.Run(t, "dpkg-deb", "--contents", out)
	for _, want := range []string{
		`drwxr-xr-x root/root +0 2026-11-28 \d\d:\d\d \./\n`,
		`-rwxr-xr-x root/root +7 2026-11-28 \d\d:\d\d \./usr/lib/halogen/halogen\n`,
		`-rw-r--r-- root/root +5 2026-11-28 \d\d:\d\d \./usr/share/doc/halogen/copyright\n`,
		`lrwxrwxrwx root/root +0 2026-11-28 \d\d:\d\d \./usr/bin/halogen -> \.\./lib/halogen/halogen\n`,
		`\./usr/share/doc/halogen/a name with spaces\n`, `\./usr/share/(long/){30}name\n`,
	} {
		if !regexp.MustCompile(want).MatchString(contents) {
			t.Errorf("%s is not in\n%s", want, contents)
		}
	}
	// What md5sums says is what is unpacked.
	testkit.Run(t, "dpkg-deb", "--raw-extract", out, filepath.Join(dir, "x"))
	check := exec.Command("md5sum", "--check", "--strict", "--quiet", "DEBIAN/md5sums")
	check.Dir = filepath.Join(dir, "x")
	if said, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
	// The same tree gives the same bytes.
	if err := make1(t, root, filepath.Join(dir, "b.deb")); err != nil {
		t.Fatal(err)
	}
	if a, b := read(t, out), read(t, filepath.Join(dir, "b.deb")); !bytes.Equal(a, b) {
		t.Error("two packages of one tree differ")
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The maintainer is who makes the package, and nobody where nobody says so.
func TestMaintainer(t *testing.T) {
	root, out := tree(t), filepath.Join(t.TempDir(), "a.deb")
	for _, c := range []struct{ argument, name, address, want string }{
		{"", "", "", "A local build that nobody answers for <nobody@localhost>"},
		{"", "A B", "", "A local build that nobody answers for <nobody@localhost>"},
		{"", "A B", "a@example.org", "A B <a@example.org>"},
		{"", "", "a@example.org", "a@example.org <a@example.org>"},
		{"", "A B", "C D <c@example.org>", "C D <c@example.org>"},
		{"E F <e@example.org>", "A B", "a@example.org", "E F <e@example.org>"},
	} {
		t.Setenv("DEBFULLNAME", c.name)
		t.Setenv("DEBEMAIL", c.address)
		if err := make1(t, root, out, "-maintainer", c.argument); err != nil {
			t.Errorf("%+v: %v", c, err)
		} else if have := strings.TrimSpace(testkit.Run(t, "dpkg-deb", "--field", out, "Maintainer")); have != c.want {
			t.Errorf("%+v: %q", c, have)
		}
	}
}

func TestRefused(t *testing.T) {
	root := tree(t)
	out := filepath.Join(t.TempDir(), "a.deb")
	for want, args := range map[string][]string{
		`version "unknown"`:       {"-version", "unknown"},
		`version ""`:              {"-version", ""},
		`version "1 2"`:           {"-version", "1 2"},
		`version "1.2-1" has a`:   {"-version", "1.2-1"},
		`"1.2-rc1-1" has a`:       {"-version", "1.2-rc1-1"},
		`"1.2-x-rc1" has a`:       {"-version", "1.2-x-rc1"},
		"want NAME <ADDRESS>":     {"-maintainer", "A B"},
		"is not a version":        {"-maintainer", "A\nDepends: x <a@b>"},
		"want -root and -out":     {"-out", ""},
		"want -root and -out, an": {"more"},
		"no such file":            {"-root", root + "/none"},
	} {
		if err := make1(t, root, out, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "usr/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := make1(t, root, out); err == nil || !strings.Contains(err.Error(), "usr/pipe is neither") {
		t.Errorf("a pipe: %v", err)
	}
}

// Versions are in dpkg's order as they are in ours.
func TestVersions(t *testing.T) {
	order := []string{"0+20261128.9a77c43f0abc", "1.0-rc1", "1.0-rc1+20261128.9a77c43f0abc", "1.0", "1.0+20261128.9a77c43f0abc", "1.0+20261129.0a77c43f0abc.dirty",
		"1.0+20261129093000.ff77c43f0abc", "1.0+20261129233000.0077c43f0abc", "1.0.1", "1.2-alpha", "1.2-beta.2", "1.2-pre1", "1.2-rc1", "1.2", "1.10"}
	for i := range order[1:] {
		a, errA := debianVersion(order[i])
		b, errB := debianVersion(order[i+1])
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		testkit.Run(t, "dpkg", "--compare-versions", a, "lt", b)
	}
}

// What the package needs is among what the tests install, which is in Debian 12 and 13,
// or is an engine that the user chooses.
func TestNeeds(t *testing.T) {
	makefile := string(read(t, "../../Makefile"))
	_, packages, _ := strings.Cut(makefile, "\nPACKAGES := ")
	packages, _, _ = strings.Cut(packages, "\n\n")
	known := append(strings.Fields(packages), "podman", "docker.io")
	for _, field := range []string{"Depends", "Recommends", "Suggests"} {
		line := regexp.MustCompile(`(?m)^` + field + `: (.*)$`).FindStringSubmatch(fields)
		for _, name := range regexp.MustCompile(`[,|] `).Split(line[1], -1) {
			if name = strings.TrimSpace(name); !slices.Contains(known, name) {
				t.Errorf("%s: %s is not among the packages of the Makefile", field, name)
			}
		}
	}
}

// TestInstall installs the package of this build beside the packages of a Debian 13, by
// whose list dpkg judges its dependencies, and removes it again.
func TestInstall(t *testing.T) {
	deb := os.Getenv("HALOGEN_DEB")
	if deb == "" {
		testkit.Skip(t, "HALOGEN_DEB names no package: `make deb-test` makes one")
	}
	testkit.Root(t, "install packages")
	tools := os.Getenv(testkit.Tools13Env)
	if tools == "" {
		testkit.Skip(t, testkit.Tools13Env+" is not set")
	}
	root := t.TempDir()
	database := filepath.Join(root, "var/lib/dpkg")
	if err := os.MkdirAll(database, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(database, os.DirFS(filepath.Join(tools, "var/lib/dpkg"))); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) {
		testkit.Run(t, "dpkg", append([]string{"--root=" + root, "--log=/dev/null", "--force-not-root"}, args...)...)
	}
	dpkg("--install", deb)
	version := strings.TrimSpace(testkit.Run(t, "dpkg-deb", "--field", deb, "Version"))
	halogen := filepath.Join(root, "usr/bin/halogen")
	if have := testkit.Run(t, halogen, "--version"); have != "halogen "+strings.ReplaceAll(version, "~", "-")+"\n" {
		t.Errorf("it says %q, and the package is of %s", have, version)
	}
	// The machine's programs are beside it, of the same version, initagent among them.
	for _, program := range []struct{ file, name string }{{"ota", "ota"}, {"halogenctl", "halogenctl"}, {"bb", "ota"}} {
		c := exec.Command(filepath.Join(root, "usr/lib/halogen", program.file), "--version")
		c.Args[0] = program.name
		if out, err := c.Output(); err != nil || string(out) != program.name+" "+strings.ReplaceAll(version, "~", "-")+"\n" {
			t.Errorf("%s says %q, %v", program.file, out, err)
		}
	}
	if list := read(t, filepath.Join(root, "usr/lib/halogen/bb.list")); !bytes.HasPrefix(list, []byte("initagent\n")) {
		t.Errorf("bb.list begins with %.40q", list)
	}
	for _, page := range []string{"man1/halogen.1", "man1/halogen-build.1", "man5/uki.conf.5", "man5/ota.conf.5", "man5/state.conf.5", "man5/manifest.env.5", "man5/release.json.5", "man8/ota.8"} {
		if _, err := os.Stat(filepath.Join(root, "usr/share/man", page+".gz")); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "usr/share/doc/halogen/changelog.gz")); err != nil { // Debian Policy 4.7, section 12.7
		t.Error(err)
	}
	if text := read(t, filepath.Join(root, "usr/share/doc/halogen/copyright")); !bytes.Contains(text, []byte("u-root")) || !bytes.Contains(text, []byte("Redistribution and use")) {
		t.Error("copyright lacks the licences")
	}
	dpkg("--purge", "halogen")
	if _, err := os.Lstat(halogen); err == nil {
		t.Error("it is still there")
	}
}
