package osfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
)

// What waits for an update runs once at the first start of an image, in order, and
// again until all of it has worked.
func TestUpdated(t *testing.T) {
	for _, shell := range []string{"dash", "busybox"} {
		t.Run(shell, func(t *testing.T) {
			root := t.TempDir()
			start := func() (string, string, error) {
				t.Helper()
				cmd := script(t, "updated.sh", root)
				path := testkit.Need(t, shell)
				if cmd.Path = path; shell == "busybox" {
					cmd.Args[0] = "sh"
				}
				if err := os.Remove(filepath.Join(root, "did")); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				said, err := cmd.CombinedOutput()
				return content(t, root, "did"), string(said), err
			}
			restart := func() {
				t.Helper()
				if err := os.Remove(filepath.Join(root, "run/halogen/updated")); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			image := func(at time.Time) {
				t.Helper()
				if err := os.Chtimes(filepath.Join(root, "usr"), at, at); err != nil {
					t.Fatal(err)
				}
			}
			note := func(what string) string { return "echo " + what + " >>" + filepath.Join(root, "did") }
			program(t, root, "bin/systemd-sysusers", note("sysusers"))
			program(t, root, "bin/ldconfig", note(`"ldconfig $1 $2"`)+`; echo "$LDCACHE" >"$3"`)
			program(t, root, "bin/systemd-hwdb", note(`"hwdb $*"`))
			program(t, root, "bin/journalctl", note(`"journalctl $*"`))
			program(t, root, "etc/ld.so.cache", "")
			const scripts = "usr/lib/halogen/updated.d/"
			program(t, root, scripts+"20-b", note("b")+"; [ -e "+filepath.Join(root, "mended")+" ]")
			program(t, root, scripts+"10-a", note("a"))
			program(t, root, scripts+"30-c", note("c"))
			program(t, root, scripts+"README", note("README"))
			if err := os.Chmod(filepath.Join(root, scripts+"README"), 0o644); err != nil {
				t.Fatal(err)
			}
			image(date)
			t.Setenv("LDCACHE", "new")

			const all = "sysusers\nldconfig -X -C\na\nb\nc\n"
			did, said, err := start()
			if err == nil || did != all || !strings.Contains(said, scripts+"20-b failed: exit status 1: it is run again at the next start\n") {
				t.Fatalf("with a script that fails: %v, did %q\n%s", err, did, said)
			}
			if failed := content(t, root, "run/halogen/updated"); failed != filepath.Join(root, scripts+"20-b")+"\n" {
				t.Errorf("left %q for the health check", failed)
			}
			if cache := content(t, root, "etc/ld.so.cache"); cache != "new\n" {
				t.Errorf("/etc/ld.so.cache is %q", cache)
			}
			if did, _, err := start(); err == nil || did != "" {
				t.Errorf("once more in this start: %v, did %q", err, did)
			}

			restart()
			program(t, root, "mended", "")
			cache := filepath.Join(root, "etc/ld.so.cache")
			if err := os.Chtimes(cache, date, date); err != nil {
				t.Fatal(err)
			}
			if did, said, err := start(); err != nil || did != all {
				t.Fatalf("mended: %v, did %q\n%s", err, did, said)
			}
			if info, err := os.Stat(cache); err != nil || !info.ModTime().Equal(date) {
				t.Errorf("the same /etc/ld.so.cache is written again (%v)", err)
			}
			for _, name := range []string{"etc/.updated", "var/.updated"} {
				if info, err := os.Stat(filepath.Join(root, name)); err != nil || !info.ModTime().Equal(date) {
					t.Errorf("/%s: %v, %v", name, info, err)
				}
			}
			for what, again := range map[string]func(){
				"the next start":   func() {},
				"an older image":   func() { image(date.Add(-time.Hour)) },
				"the one of today": func() { image(date) },
			} {
				restart()
				again()
				if did, said, err := start(); err != nil || did != "" {
					t.Errorf("%s: %v, did %q\n%s", what, err, did, said)
				}
			}
			// With a database in /etc, and a catalog.
			program(t, root, "etc/udev/hwdb.bin", "")
			program(t, root, "usr/lib/systemd/catalog/x", "")
			const more = "sysusers\nldconfig -X -C\nhwdb update\njournalctl --update-catalog\na\nb\nc\n"
			for what, again := range map[string]func(){
				"a newer image": func() { image(date.Add(time.Hour)) },
				"/etc is another image's": func() {
					if err := os.Remove(filepath.Join(root, "etc/.updated")); err != nil {
						t.Fatal(err)
					}
				},
				"/var is another image's": func() {
					if err := os.Remove(filepath.Join(root, "var/.updated")); err != nil {
						t.Fatal(err)
					}
				},
			} {
				restart()
				again()
				if did, said, err := start(); err != nil || did != more {
					t.Errorf("%s: %v, did %q\n%s", what, err, did, said)
				}
			}
		})
	}
}

// The cache of libraries is the old one or the new one, wherever it is cut, an end before
// all is done is a failure, and an /etc that cannot be written to is left as it is.
func TestUpdatedCut(t *testing.T) {
	for _, c := range []struct{ name, cp, script, cache, did, left string }{
		{"all well", `exec /bin/cp "$@"`, "", "new\n", "sysusers\nldconfig\ncatalog\na\n", ""},
		{"cut while the cache is written", `printf to >"$2"; kill -9 $PPID`, "", "old\n", "sysusers\nldconfig\n", "updated\n"},
		{"no room for the cache", `printf to >"$2"; exit 1`, "", "old\n", "sysusers\nldconfig\ncatalog\na\n", "replace_ld_so_cache\n"},
		{"killed by a timeout", `exec /bin/cp "$@"`, "kill -9 $PPID", "new\n", "sysusers\nldconfig\ncatalog\na\n", "updated\n"},
		{"/etc is read-only", "exit 1", "", "old\n", "catalog\na\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			note := func(what string) string { return "echo " + what + " >>" + filepath.Join(root, "did") }
			program(t, root, "bin/systemd-sysusers", note("sysusers"))
			program(t, root, "bin/ldconfig", note("ldconfig")+`; echo new >"$3"`)
			program(t, root, "bin/journalctl", note("catalog"))
			program(t, root, "bin/cp", c.cp)
			program(t, root, "usr/lib/systemd/catalog/x", "")
			program(t, root, "usr/lib/halogen/updated.d/10-a", note("a")+"\n"+c.script)
			start := func() error {
				cmd := script(t, "updated.sh", root)
				cmd.Path = testkit.Need(t, "dash")
				return cmd.Run()
			}
			if c.name == "/etc is read-only" {
				if err := os.MkdirAll(filepath.Join(root, "etc/.updated.new"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			program(t, root, "etc/ld.so.cache", "")
			if err := os.WriteFile(filepath.Join(root, "etc/ld.so.cache"), []byte("old\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			err := start()
			if did, left := content(t, root, "did"), content(t, root, "run/halogen/updated"); (err == nil) != (c.left == "") || did != c.did || !strings.HasSuffix(left, c.left) || c.left == "" && left != "" {
				t.Errorf("%v, did %q, left %q; want %q, %q", err, did, left, c.did, c.left)
			}
			if have := content(t, root, "etc/ld.so.cache"); have != c.cache {
				t.Errorf("/etc/ld.so.cache is %q, want %q", have, c.cache)
			}
			if err := os.Remove(filepath.Join(root, "run/halogen/updated")); err != nil {
				t.Fatal(err)
			}
			if err := start(); c.left == "" && (err != nil || content(t, root, "did") != c.did) {
				t.Errorf("the next start: %v, did %q", err, content(t, root, "did"))
			}
		})
	}
}

// Only a systemd that does not say itself when an update is done gets help.
func TestAddUpdated(t *testing.T) {
	for _, c := range []struct {
		name string
		has  []string
		unit bool
	}{
		{"Debian 12", []string{systemd}, true},
		{"Debian 13", []string{systemd, units + "systemd-update-done.service"}, false},
		{"/usr not merged", []string{"lib/systemd/systemd", "lib/systemd/system/systemd-update-done.service"}, false},
		{"another init", []string{"sbin/init"}, false},
		{"masked", []string{systemd, units + "systemd-update-done.service", "=etc/systemd/system/systemd-update-done.service"}, true},
		{"masked by the vendor", []string{systemd, "=" + units + "systemd-update-done.service"}, true},
		{"an image of HalogenOS's", []string{systemd, units + "halogen-updated.service", "@" + units + "systemd-update-done.service"}, true},
	} {
		var files []string
		for _, name := range c.has {
			if !strings.ContainsAny(name, "=@") {
				files = append(files, name)
			}
		}
		tree, dir := tree(t, files...)
		for _, name := range c.has {
			var err error
			switch name[0] {
			case '=':
				err = tree.AddSymlink(name[1:], "/dev/null", date)
			case '@':
				err = tree.AddSymlink(name[1:], "halogen-updated.service", date)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Add(tree, new(config.Config), date); err != nil {
			t.Fatal(err)
		}
		if link, err := os.Readlink(filepath.Join(dir, units, "systemd-update-done.service")); c.name == "Debian 12" && link != "halogen-updated.service" {
			t.Errorf("%s: units ordered before systemd-update-done.service are not before halogen-updated.service: %q, %v", c.name, link, err)
		}
		if have := exists(t, filepath.Join(dir, units, "sysinit.target.wants/halogen-updated.service")); have != c.unit {
			t.Errorf("%s: halogen-updated.service %v", c.name, have)
		}
		if !exists(t, filepath.Join(dir, "usr/lib/halogen/updated")) {
			t.Errorf("%s: /usr/lib/halogen/updated is missing", c.name)
		}
	}
}
