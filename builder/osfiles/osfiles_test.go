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

	"halogenos.internal/boot/keynote"
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
			notes, err := Add(tree, &config.Config{Update: config.Update{Server: c.server, Channel: manifest.Beta, SignedManifest: "yes"}}, date)
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

// What puts otad on D-Bus is there as a whole or not at all, and only with systemd.
func TestAddBus(t *testing.T) {
	count := func(dir string) (n int) {
		for _, f := range forBus {
			if exists(t, filepath.Join(dir, f.name)) {
				n++
			}
		}
		return n
	}
	for name, c := range map[string]struct {
		has  []string
		want int
		note string
	}{
		"systemd":                    {[]string{systemd}, 2, ""},
		"systemd and its sysupdated": {[]string{systemd, forBus[1].name}, 1, "org.freedesktop.sysupdate1"},
		"another init":               {nil, 0, ""},
	} {
		tree, dir := tree(t, c.has...)
		notes, err := Add(tree, new(config.Config), date)
		if n := count(dir); err != nil || n != c.want || (len(notes) > 0) != (c.note != "") || !strings.Contains(strings.Join(notes, ""), c.note) {
			t.Errorf("%s: %d files, notes %q, %v", name, n, notes, err)
		}
	}
}

// Every link leads to a unit that is there, and every file that is embedded is
// put somewhere.
func TestFilesAreUsed(t *testing.T) {
	all := slices.Concat([]file{timer}, common, forSystemd, forBus, forOldSystemd, forFirstStart, forOtherFirstStart)
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
	program := regexp.MustCompile(`(?m)^(Exec\w+=[-+]*)(otad?|halogenctl|/usr/lib/halogen/\w+)\b`)
	for _, f := range slices.Concat(forSystemd, forOldSystemd, forFirstStart) {
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
	for _, unit := range []string{"multi-user.target", "otad.socket", "ota-restart.timer", "ota-restart.service", "otad.service", "ota-fetch.timer", "ota-fetch.service", "ota-unhealthy.service", "halogen-changes.service", "halogen-setup.service", "graphical.target", "emergency.target", "sysinit.target"} {
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

// A healthy system is kept, and one that is not a trial notes what the next update is
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

// Machines ask at their first start where uki.conf says so, and nothing else asks.
func TestFirstStart(t *testing.T) {
	const unit, link, script = units + "halogen-setup.service", units + "multi-user.target.wants/halogen-setup.service", "usr/share/halogen/examples/setup.sysv"
	for _, c := range []struct {
		name   string
		value  string
		has    []string
		unit   bool
		script bool
		note   string
	}{
		{"not asked for", config.NoneAtFirstStart, []string{systemd}, false, false, ""},
		{"no value", "", []string{systemd}, false, false, ""},
		{"systemd", config.AskAtFirstStart, []string{systemd}, true, false, ""},
		{"another init", config.AskAtFirstStart, []string{"sbin/init"}, false, true, "there is no systemd"},
		{"GNOME", config.AskAtFirstStart, []string{systemd, "usr/libexec/gnome-initial-setup"}, false, false, "GNOME's own program asks"},
		{"KDE", config.AskAtFirstStart, []string{systemd, units + "plasma-setup.service"}, false, false, "KDE's own program asks"},
	} {
		tree, dir := tree(t, c.has...)
		notes, err := Add(tree, &config.Config{Machine: config.Machine{FirstStart: c.value}}, date)
		if err != nil || (c.note == "") != (len(notes) == 0) || !strings.Contains(strings.Join(notes, "\n"), c.note) {
			t.Errorf("%s: notes %q, %v", c.name, notes, err)
		}
		if exists(t, filepath.Join(dir, unit)) != c.unit || exists(t, filepath.Join(dir, link)) != c.unit || exists(t, filepath.Join(dir, script)) != c.script {
			t.Errorf("%s: want the unit %v, the script %v", c.name, c.unit, c.script)
		}
	}
}

// Nothing restarts the machine while a first start asks, and no release is fetched that
// would be on trial at the next start: systemd starts these units after the questions.
func TestFirstStartUndisturbed(t *testing.T) {
	for _, unit := range []string{"ota-fetch.service", "ota-restart.service"} {
		text, err := files.ReadFile("files/systemd/" + unit)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`(?m)^After=(.* )?halogen-setup\.service( |$)`).Match(text) {
			t.Errorf("%s does not wait for halogen-setup.service:\n%s", unit, text)
		}
	}
}

// A desktop that asks on its serial port looks dead.
func TestFirstStartConsole(t *testing.T) {
	for cmdline, want := range map[string]string{
		"quiet": "", "console=tty0": "", "console=ttyS0,115200 console=tty0": "", "console=tty1": "",
		"console=tty0 console=ttyS0,115200": "on ttyS0 alone", "console=tty0 console=hvc0": "on hvc0 alone",
	} {
		tree, _ := tree(t, systemd)
		notes, err := Add(tree, &config.Config{Machine: config.Machine{FirstStart: config.AskAtFirstStart}, UKI: config.UKI{Cmdline: cmdline}}, date)
		if text := strings.Join(notes, "\n"); err != nil || (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("%s: %q, %v", cmdline, notes, err)
		}
	}
}

// The script asks while there is a note of the first start, and ends well whatever comes of it: what follows
// it is to start.
func TestSetupScript(t *testing.T) {
	for _, note := range []bool{true, false} {
		root := t.TempDir()
		cmd := script(t, "examples/setup.sysv", root)
		text := strings.ReplaceAll(cmd.Args[2], "/dev/console", "/dev/null")
		cmd.Args = []string{"sh", "-c", text, "sh", "start"}
		program(t, root, "bin/halogenctl", `echo "$*" >>`+filepath.Join(root, "did")+"; exit 1")
		want := ""
		if note {
			program(t, root, "var/lib/halogen/first-start", "")
			want = "setup --first-start\n"
		}
		said, err := cmd.CombinedOutput()
		if did := content(t, root, "did"); err != nil || did != want {
			t.Errorf("note %v: %v, %s, did %q", note, err, said, did)
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
	for name, content := range map[string]string{"boot.json": "{}", "conflicts": "found last\n", "news": "new last\n", "ota": "#!/bin/sh\necho new now $*\nexit 1\n", "halogenctl": "#!/bin/sh\necho found now $*\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("/etc/halogen", dir, "/run/halogen", dir, "/var/lib/halogen", dir, "$(id -u)", "$USER_ID").Replace(string(text))
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
	if out := run("0", terminal); out != "new now notes --summary\nfound now changes --summary\n" {
		t.Errorf("root reads %q", out)
	}
	if out := run("1000", terminal); out != "new last\nfound last\n" {
		t.Errorf("a user reads %q", out)
	}
	note, err := keynote.Note{Unconfirmed: true, Shown: 1}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, keynote.Name), note, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("0", terminal); !strings.Contains(out, "found now") || !strings.Contains(out, "halogenctl recovery-key new\n") {
		t.Errorf("with an unconfirmed recovery key root reads %q", out)
	}
	if out := run("0", script); out != "" {
		t.Errorf("with an unconfirmed recovery key, without a terminal: %q", out)
	}
	// Directories other than /etc have lists of their own.
	if units, err := files.ReadFile("files/systemd/halogen-changes.service"); err != nil || strings.Contains(string(text)+string(units), "/etc/halogen/changes.json") {
		t.Errorf("a list of /etc is asked for, %v", err)
	}
	if out := run("0", script) + run("1000", script); out != "" {
		t.Errorf("without a terminal: %q", out)
	}
	if err := os.Remove(filepath.Join(dir, "news")); err != nil {
		t.Fatal(err)
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
