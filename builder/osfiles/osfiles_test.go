package osfiles

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
			for _, name := range []string{"usr/lib/halogen/health", "usr/lib/sysusers.d/halogen-ota.conf", "usr/share/halogen/examples/ota.cron", "var/lib/halogen", "etc/profile.d/halogen-changes.sh"} {
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
	all := slices.Concat([]file{timer}, common, forSystemd, forOldSystemd)
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
	program := regexp.MustCompile(`(?m)^(Exec\w+=[-+]*)(ota|halogenctl|/usr/lib/halogen/\w+)\b`)
	for _, f := range slices.Concat(forSystemd, forOldSystemd) {
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
	for _, unit := range []string{"multi-user.target", "ota-fetch.timer", "ota-fetch.service", "ota-unhealthy.service", "halogen-changes.service", "emergency.target", "sysinit.target"} {
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

// script returns one of the shell scripts that finds its directories below another
// root, and how programs are found first in root/bin.
func script(t *testing.T, name, root string) *exec.Cmd {
	t.Helper()
	text, err := files.ReadFile("files/" + name)
	if err != nil {
		t.Fatal(err)
	}
	moved := regexp.MustCompile(`(?m)(^|[ "=$({!])(/(?:etc|usr|var|run)\b)`).ReplaceAll(text, []byte("${1}"+root+"${2}"))
	moved = bytes.ReplaceAll(moved, []byte("#!"+root), []byte("#!"))
	cmd := exec.CommandContext(t.Context(), "sh", "-c", string(moved))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
	for _, directory := range []string{"bin", "etc", "usr", "var", "run/halogen"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

// program puts a script below root, one that can be run unless its mode says otherwise.
func program(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// The health check runs what it finds, says what failed, and leaves that for the boot
// journal.
func TestHealth(t *testing.T) {
	const good = "echo 'old.service failed before, too'"
	for _, c := range []struct {
		name    string
		checks  map[string]string // content by name
		ota     string
		updated string
		reason  string // "" is healthy
		say     string
	}{
		{"none", nil, good, "", "", "old.service failed before, too\n"},
		{"all good", map[string]string{"usr/lib/halogen/health.d/10-a": "echo a", "etc/halogen/health.d/20-b": "echo b"}, good, "", "", "a\nb\n"},
		{"one bad", map[string]string{"usr/lib/halogen/health.d/10-a": "exit 3", "etc/halogen/health.d/20-b": "echo b"}, good, "", "10-a failed: exit status 3\n", "exit status 3"},
		{"a unit failed", nil, "echo 'ota health: failed: new.service' >&2; exit 1", "", "failed: new.service\n", "failed: new.service"},
		{"a warning", nil, "echo 'warning: line 3' >&2; echo good", "", "", "good\nwarning: line 3\n"},
		{"no trial", map[string]string{"usr/lib/halogen/health.d/10-a": "echo a"}, "exit 1", "", "", "a\n"},
		{"no ota", nil, "exit 127", "", "ota health: exit status 127\n", "ota health"},
		{"what may fail has failed", nil, good, "/usr/lib/halogen/updated.d/10-may\nldconfig\n", "", "and may: /usr/lib/halogen/updated.d/10-may\n"},
		{"a line that is more than a name", nil, good, "not-one\n", "at the first start of this image failed: not-one\n", "not-one"},
		{"what waits for an update failed", nil, good, "/usr/lib/halogen/updated.d/10-a\nldconfig\n", "at the first start of this image failed: /usr/lib/halogen/updated.d/10-a ldconfig\n", "10-a"},
		{"what waits for an update worked", nil, good, "none", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			cmd := script(t, "health.sh", root)
			program(t, root, "bin/ota", `[ "$*" = health ] || exit 9; `+c.ota)
			if c.name != "no trial" {
				program(t, root, "run/halogen/boot.json", `  "trial": true,`)
			}
			for name, text := range c.checks {
				program(t, root, name, text)
			}
			for name, text := range map[string]string{"usr/lib/halogen/health-ignore.default": "# x\n\n*-may\n", "etc/halogen/health-ignore": "not-one two\n[n]ot-one\n  ldconf?g # mine"} {
				if strings.HasPrefix(c.name, "what may") || strings.HasPrefix(c.name, "a line") {
					program(t, root, name, text)
				}
			}
			// Not a program, so nothing to run.
			program(t, root, "etc/halogen/health.d/README", "exit 1")
			if err := os.Chmod(filepath.Join(root, "etc/halogen/health.d/README"), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.updated != "" {
				if err := os.WriteFile(filepath.Join(root, "run/halogen/updated"), []byte(strings.TrimPrefix(c.updated, "none")), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			program(t, root, "run/halogen/unhealthy", "of an earlier check")
			said, err := cmd.CombinedOutput()
			if (err == nil) != (c.reason == "") || !strings.Contains(string(said), c.say) {
				t.Errorf("%v: %s", err, said)
			}
			if reason := content(t, root, "run/halogen/unhealthy"); !strings.HasSuffix(reason, c.reason) || c.reason == "" && reason != "" {
				t.Errorf("for the journal: %q, want %q", reason, c.reason)
			}
		})
	}
}

// A trial that is not healthy is given up with the reason that the check has left.
func TestUnhealthy(t *testing.T) {
	for _, c := range []struct{ script, reason, want string }{
		{"unhealthy.sh", "failed: new.service\n", "ota bless --failed failed: new.service\nsystemctl --no-block reboot\n"},
		{"unhealthy.sh", "", "ota bless --failed failed: a.service b.mount\nsystemctl --no-block reboot\n"},
		{"examples/ota-boot", "failed: sshd\n", "updated \nota bless --failed failed: sshd\nreboot \n"},
		{"examples/ota-boot", "", "updated \nota bless --failed the health check has failed\nreboot \n"},
	} {
		root := t.TempDir()
		cmd := script(t, c.script, root)
		log := ` $*" >>` + filepath.Join(root, "did")
		program(t, root, "bin/ota", `echo "ota`+log)
		program(t, root, "bin/reboot", `echo "reboot`+log)
		program(t, root, "bin/systemctl", `[ "$1" != list-units ] || { printf 'a.service loaded failed failed A\nb.mount loaded failed failed B\n'; exit; }; echo "systemctl`+log)
		program(t, root, "usr/lib/halogen/updated", `echo "updated`+log)
		left := ""
		if c.reason != "" {
			left = "printf '" + strings.TrimSpace(c.reason) + "\n' >" + filepath.Join(root, "run/halogen/unhealthy") + "; "
		}
		program(t, root, "usr/lib/halogen/health", left+"exit 1")
		program(t, root, "run/halogen/boot.json", `"trial": true`)
		if c.script == "unhealthy.sh" && c.reason != "" {
			if err := os.WriteFile(filepath.Join(root, "run/halogen/unhealthy"), []byte(c.reason), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		said, err := cmd.CombinedOutput()
		if did := content(t, root, "did"); err != nil || did != c.want {
			t.Errorf("%s: %v, %s\ndid %q\nwant %q", c.script, err, said, did, c.want)
		}
	}
}

// A healthy system is kept, and one that is no trial notes what the next update is
// compared with.
func TestKept(t *testing.T) {
	for boot, want := range map[string]string{`"trial": true`: "ota bless\n", `"trial": false`: "ota bless\nota health\n"} {
		root := t.TempDir()
		cmd := script(t, "examples/ota-boot", root)
		program(t, root, "bin/ota", `echo "ota $*" >>`+filepath.Join(root, "did"))
		program(t, root, "usr/lib/halogen/updated", "")
		program(t, root, "usr/lib/halogen/health", "")
		program(t, root, "run/halogen/boot.json", boot)
		said, err := cmd.CombinedOutput()
		if did := content(t, root, "did"); err != nil || did != want {
			t.Errorf("%s: %v, %s\ndid %q, want %q", boot, err, said, did, want)
		}
	}
}

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

// Beside the 3.5 minutes that a start may take to settle, the image's own checks have ten,
// and boot-complete.target waits for them.
func TestTimeouts(t *testing.T) {
	limit := func(name, before, after string) time.Duration {
		t.Helper()
		text, err := files.ReadFile("files/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), before)
		number, _, _ := strings.Cut(rest, after)
		d, err := time.ParseDuration(strings.TrimSuffix(strings.TrimSuffix(number, "in"), "m") + map[string]string{" ": "s", "\n": "m"}[after])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	check := limit("systemd/ota-health.service", "\nTimeoutStartSec=", "\n")
	if least := 10*time.Minute + 210*time.Second; check < least {
		t.Errorf("ota-health.service has %v, want %v", check, least)
	}
	if target := limit("systemd/boot-complete.conf", "\nJobTimeoutSec=", "\n"); target < check+5*time.Minute {
		t.Errorf("boot-complete.target has %v, and the check %v", target, check)
	}
	if other := limit("examples/ota-boot", "if timeout ", " "); other != check {
		t.Errorf("ota-boot has %v, and ota-health.service %v", other, check)
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

// A list of services that may fail is right, or the build says what is wrong with it.
func TestAddIgnore(t *testing.T) {
	for text, good := range map[string]bool{"# none\nNetworkManager-wait-online.service\n": true, "a.service b.service\n": false} {
		tree, _ := tree(t, systemd)
		if err := tree.AddFile("usr/lib/halogen/health-ignore", []byte(text), 0o644, date); err != nil {
			t.Fatal(err)
		}
		if _, err := Add(tree, new(config.Config), date); (err == nil) != good || err != nil && !strings.Contains(err.Error(), "/usr/lib/halogen/health-ignore, line 1: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Scripts that nothing runs are named.
func TestAddScripts(t *testing.T) {
	const one = "usr/lib/halogen/updated.d/10-a"
	for _, c := range []struct {
		has  []string
		said bool
	}{
		{[]string{systemd, one}, false},
		{[]string{systemd, one, units + "systemd-update-done.service"}, true},
		{[]string{"sbin/init", one}, false},
	} {
		tree, _ := tree(t, c.has...)
		notes, err := Add(tree, new(config.Config), date)
		if err != nil || (len(notes) == 1 && strings.Contains(notes[0], "updated.d is not run")) != c.said {
			t.Errorf("%q: notes %q, %v", c.has, notes, err)
		}
	}
}

// Everybody who logs in reads what waits for a decision; a script and scp, which have no
// terminal, read nothing.
func TestProfile(t *testing.T) {
	text, err := files.ReadFile("files/profile.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"boot.json": "{}", "conflicts": "found last\n", "halogenctl": "#!/bin/sh\necho found now $*\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("/etc/halogen", dir, "/run/halogen", dir, "$(id -u)", "$USER_ID").Replace(string(text))
	run := func(user, script string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
		c.Env = []string{"PATH=" + dir + ":/usr/bin:/bin", "USER_ID=" + user}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("user %s: %v", user, err)
		}
		return string(out)
	}
	terminal := strings.ReplaceAll(script, "[ -t 1 ]", "true")
	if out := run("0", terminal); out != "found now changes --summary\n" {
		t.Errorf("root reads %q", out)
	}
	if out := run("1000", terminal); out != "found last\n" {
		t.Errorf("a user reads %q", out)
	}
	// Directories other than /etc have lists of their own.
	if units, err := files.ReadFile("files/systemd/halogen-changes.service"); err != nil || strings.Contains(string(text)+string(units), "/etc/halogen/changes.json") {
		t.Errorf("a list of /etc is asked for, %v", err)
	}
	if out := run("0", script) + run("1000", script); out != "" {
		t.Errorf("without a terminal: %q", out)
	}
	for _, name := range []string{"conflicts", "boot.json"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if out := run("1000", terminal); out != "" {
			t.Errorf("without %s: %q", name, out)
		}
	}
	if out := run("0", terminal); out != "" {
		t.Errorf("where initagent did not boot root reads %q", out)
	}
}
