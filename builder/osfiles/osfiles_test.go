package osfiles

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs"
)

var date = time.Unix(1_700_000_000, 0)

const systemd = "usr/lib/systemd/systemd"

// tree returns a tree of regular files and the directory that it lies in.
func tree(t *testing.T, names ...string) (*rootfs.Tree, string) {
	t.Helper()
	dir := t.TempDir()
	tree, err := rootfs.NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range names {
		if err := tree.AddFile(name, []byte("theirs"), 0o755, date); err != nil {
			t.Fatal(err)
		}
	}
	return tree, dir
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err == nil
}

func TestAdd(t *testing.T) {
	const fetch, bless = "etc/systemd/system/timers.target.wants/ota-fetch.timer", "usr/lib/systemd/system/multi-user.target.wants/ota-bless.service"
	for _, c := range []struct {
		name         string
		has          []string
		server       string
		bless, timer bool
	}{
		{"systemd", []string{systemd}, "https://example.org", true, true},
		{"systemd, /usr not merged", []string{"lib/systemd/systemd"}, "https://example.org", true, true}, // FAULTS 112
		{"systemd without a server", []string{systemd}, "", true, false},
		{"another init", []string{"sbin/init"}, "https://example.org", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, dir := tree(t, c.has...)
			notes, err := Add(tree, &config.Config{Server: c.server, Channel: manifest.Beta, SignedManifest: "yes"}, date)
			if err != nil || len(notes) != 0 {
				t.Fatalf("notes %q, %v", notes, err)
			}
			if exists(t, filepath.Join(dir, bless)) != c.bless || exists(t, filepath.Join(dir, fetch)) != c.timer {
				t.Errorf("want bless %v and timer %v", c.bless, c.timer)
			}
			for _, name := range []string{"usr/lib/halogen/health", "usr/lib/sysusers.d/halogen-ota.conf", "usr/share/halogen/examples/ota.cron", "var/lib/halogen"} {
				if !exists(t, filepath.Join(dir, name)) {
					t.Errorf("/%s is missing", name)
				}
			}
			conf, err := os.ReadFile(filepath.Join(dir, "usr/lib/halogen/ota.conf"))
			if err != nil || !strings.Contains(string(conf), "\nChannel=beta\nRequireSignedManifest=yes\n") ||
				strings.Contains(string(conf), "\nServer="+c.server+"\n") != (c.server != "") {
				t.Errorf("%v\n%s", err, conf)
			}
		})
	}
}

// What the distributor has said has precedence.
func TestAddKeeps(t *testing.T) {
	const own = "usr/lib/halogen/ota.conf"
	tree, dir := tree(t, systemd, own)
	notes, err := Add(tree, new(config.Config), date)
	if err != nil || len(notes) != 1 || !strings.Contains(notes[0], own) {
		t.Fatalf("notes %q, %v", notes, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, own)); err != nil || string(text) != "theirs" {
		t.Errorf("%q, %v", text, err)
	}
}

// Every link leads to a unit that is there, and every file that is embedded is
// put somewhere.
func TestFilesAreUsed(t *testing.T) {
	all := append(append([]file{timer}, common...), forSystemd...)
	names, used := map[string]bool{}, map[string]bool{}
	for _, f := range all {
		names[f.name], used["files/"+f.embedded] = true, true
	}
	for _, f := range all {
		if f.link == "" {
			continue
		}
		at := strings.TrimPrefix(f.link, "/")
		if at == f.link {
			at = filepath.Join(filepath.Dir(f.name), f.link)
		}
		if !names[at] {
			t.Errorf("%s leads to %s, which is not there", f.name, at)
		}
	}
	err := fs.WalkDir(files, "files", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !used[path] {
			t.Errorf("%s is in no image", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// systemd itself finds nothing wrong with the units: no key that it does not
// know, and no cycle when all of them start.
func TestUnits(t *testing.T) {
	judge := testkit.Tools13(t)
	directory := judge.Path("units")
	// The programs are not in the judge's tree.
	program := regexp.MustCompile(`(?m)^(Exec\w+=[-+]*)(ota|/usr/lib/halogen/\w+)\b`)
	for _, f := range forSystemd {
		if !strings.HasPrefix(f.name, units) {
			continue
		}
		at := filepath.Join(judge.Host(directory), strings.TrimPrefix(f.name, units))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if f.link != "" {
			if err := os.Symlink(f.link, at); err != nil {
				t.Fatal(err)
			}
			continue
		}
		text, err := files.ReadFile("files/" + f.embedded)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, program.ReplaceAll(text, []byte("${1}/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(unit string) string {
		return string(judge.Run("sh", "-c", "SYSTEMD_UNIT_PATH="+directory+": systemd-analyze verify --man=no "+unit+" 2>&1"))
	}
	for _, unit := range []string{"multi-user.target", "ota-fetch.timer", "ota-fetch.service", "ota-unhealthy.service", "emergency.target"} {
		if said := verify(unit); said != "" {
			t.Errorf("%s: %s", unit, said)
		}
	}
	// A judge that says nothing whatever it sees is none.
	bad := "[Unit]\nDescription=x\nNise=1\n[Service]\nExecStart=/bin/true\n"
	if said := verify(judge.Put("bad.service", []byte(bad))); !strings.Contains(said, "Nise") {
		t.Errorf("systemd-analyze says of a unit with an unknown key: %q", said)
	}
}

// The health check runs what it finds, and says what failed.
func TestHealth(t *testing.T) {
	script, err := files.ReadFile("files/health.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		checks map[string]string // content by name
		ok     bool
		say    string
	}{
		{"none", nil, true, ""},
		{"all good", map[string]string{"10-a": "#!/bin/sh\necho a", "20-b": "#!/bin/sh\necho b"}, true, "a\nb\n"},
		{"one bad", map[string]string{"10-a": "#!/bin/sh\nexit 3", "20-b": "#!/bin/sh\necho b"}, false, "exit status 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.checks {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// Not a program, so nothing to run.
			if err := os.WriteFile(filepath.Join(dir, "README"), []byte("exit 1"), 0o644); err != nil {
				t.Fatal(err)
			}
			here := bytes.ReplaceAll(script, []byte("/usr/lib/halogen/health.d"), []byte(dir))
			said, err := exec.CommandContext(t.Context(), "sh", "-c", string(here)).CombinedOutput()
			if (err == nil) != c.ok || !strings.Contains(string(said), c.say) {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
}
