package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

func TestManageCommandLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"promote"}, exitUsage, "want --server ROOT and one VERSION"},
		{[]string{"promote", "1", "2", "--server", "s"}, exitUsage, "want --server"},
		{[]string{"promote", "x", "--server", "s"}, exitUsage, "version"},
		{[]string{"promote", "1", "--server", "s", "--keep", "2"}, exitUsage, "--keep does not go with promote"},
		{[]string{"refresh", "--server", "s", "--rollout", "2"}, exitUsage, "--rollout does not go with refresh"},
		{[]string{"refresh", "1", "--server", "s"}, exitUsage, "want --server ROOT"},
		{[]string{"refresh", "--server", "s", "--key", "k", "--gpg"}, exitUsage, "in place of --key"},
		{[]string{"withdraw", "1", "--server", t.TempDir()}, exitFailure, "no manifest.env"},
		{[]string{"list"}, exitUsage, "want one ROOT"},
		{[]string{"list", t.TempDir()}, exitFailure, "no manifest.env"},
		{[]string{"archive", "--build", "b"}, exitUsage, "want --build and --out"},
		{[]string{"archive", "--build", t.TempDir(), "--out", t.TempDir()}, exitFailure, "release.json"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"release"}, c.args...)...)
		if code != c.code || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("release %q: exit code %d, stdout %q, stderr %q; want %d, %q", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
	for _, command := range []string{"list", "promote", "withdraw", "prune", "refresh", "archive"} {
		if code, stdout, _ := run(t, nil, "release", command, "--help"); code != exitOK || !strings.Contains(stdout, "halogen release "+command) {
			t.Errorf("release %s --help: %d, %s", command, code, stdout)
		}
	}
}

// FAULTS 112 (R15): a distributor's commands, from the command line
func TestManageServer(t *testing.T) {
	out, _, _ := build(t)
	root := filepath.Join(t.TempDir(), "www")
	do := func(want string, args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, nil, append([]string{"release"}, args...)...)
		if code != exitOK || !strings.Contains(stdout+stderr, want) {
			t.Fatalf("release %q: exit code %d, want %q in %s%s", args, code, want, stdout, stderr)
		}
		return stdout
	}
	do("7.tar.gz", "--build", out, "--server", root)
	do("stable", "list", root)
	do("", "promote", "7", "--server", root, "--channel", "beta", "--rollout", "30")
	var listed map[string][]struct {
		Channels []string
	}
	if err := json.Unmarshal([]byte(do("", "list", root, "--json")), &listed); err != nil || len(listed[filepath.Join(root, "x86_64/test-os")][0].Channels) != 2 {
		t.Errorf("%v, %v", listed, err)
	}
	if code, _, stderr := run(t, nil, "release", "withdraw", "7", "--server", root, "--image", "x86_64/test-os"); code != exitFailure || !strings.Contains(stderr, "is the only one") {
		t.Errorf("withdraw: %d, %s", code, stderr)
	}
}

// The help's commands upload a server so that the manifest comes last, and remove
// what is old after it. FAULTS 112 (R15): rsync in the wrong order
func TestUploadOrder(t *testing.T) {
	rsync := testkit.Need(t, "rsync")
	root, host := filepath.Join(t.TempDir(), "www"), filepath.Join(t.TempDir(), "host")
	dir := filepath.Join(root, "x86_64/os")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	commands := regexp.MustCompile(`(?m)^  rsync (.*)$`).FindAllStringSubmatch(releaseSummary, -1)
	if len(commands) != 4 {
		t.Fatalf("the help has %d commands", len(commands))
	}
	upload := func(step int) {
		t.Helper()
		words := strings.Fields(strings.NewReplacer("HOST:ROOT", host, "ROOT/", root+"/", "'", "").Replace(commands[step][1]))
		if said, err := exec.Command(rsync, words...).CombinedOutput(); err != nil {
			t.Fatalf("rsync %q: %v\n%s", words, err, said)
		}
	}
	have := func() string {
		var all []string
		for _, name := range []string{"1/1.tar.gz", "2/2.tar.gz", ".publishing-2/x", ".next-manifest.env"} {
			if _, err := os.Stat(filepath.Join(host, "x86_64/os", name)); err == nil {
				all = append(all, name)
			}
		}
		m, _ := os.ReadFile(filepath.Join(host, "x86_64/os/manifest.env"))
		s, _ := os.ReadFile(filepath.Join(host, "x86_64/os/manifest.env.pgp"))
		return strings.Join(all, " ") + " " + string(m) + " " + string(s)
	}
	write("1/1.tar.gz", "one")
	write("manifest.env", "m1")
	write("manifest.env.pgp", "s1")
	for i := range commands {
		upload(i)
	}
	if err := os.RemoveAll(filepath.Join(dir, "1")); err != nil {
		t.Fatal(err)
	}
	write("2/2.tar.gz", "two")
	write("manifest.env", "m2 ")
	write("manifest.env.pgp", "s2 ")
	write(".publishing-2/x", "x")
	write(".next-manifest.env", "x")
	for i, want := range []string{"1/1.tar.gz 2/2.tar.gz m1 s1", "1/1.tar.gz 2/2.tar.gz m1 s2 ", "1/1.tar.gz 2/2.tar.gz m2  s2 ", "2/2.tar.gz m2  s2 "} {
		if upload(i); have() != want {
			t.Errorf("after step %d the server has %q, want %q", i+1, have(), want)
		}
	}
}

// A key that signs a manifest is guarded as one that signs a release: nothing else of
// the user's reads the memory it is in. FAULTS 102
func TestManageGuardsTheKey(t *testing.T) {
	dumpable := func(to uintptr) {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, to, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, do := range [][]string{{"promote", "7"}, {"withdraw", "7"}, {"refresh"}} {
		dumpable(1)
		if code, _, stderr := run(t, nil, append(append([]string{"release"}, do...), "--server", t.TempDir(), "--key", "none")...); code == 0 {
			t.Errorf("%s: done: %s", do[0], stderr)
		}
		if is, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || is != 0 {
			t.Errorf("%s: dumpable is %d, %v", do[0], is, err)
		}
	}
	dumpable(1)
}
