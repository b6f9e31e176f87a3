package machine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/uroot-cmds/setup/steps"
)

const hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"

// image is a system, in the main.
var image = map[string]string{
	"etc/passwd":  "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
	"etc/group":   "root:x:0:\nsudo:x:27:\naudio:x:29:\nnogroup:x:65534:\n",
	"etc/shadow":  "root:*:20000:0:99999:7:::\nnobody:!:20000::::::\n",
	"etc/gshadow": "root:*::\nsudo:*::\naudio:*::\nnogroup:*::\n",
	"etc/subuid":  "", "etc/subgid": "",
	"etc/hostname":                           "halogen\n",
	"etc/hosts":                              "127.0.0.1 localhost\n",
	"etc/default/keyboard":                   "XKBLAYOUT=\"us\"\n",
	"etc/halogen/ota.conf":                   "Server=https://example.org\n",
	"var/lib/halogen/first-start":            "1\n",
	"home/.keep":                             "",
	"usr/lib/systemd/system/ota-fetch.timer": "",
	"etc/systemd/system/timers.target.wants/another.timer": "",
	"usr/share/zoneinfo/Europe/Berlin":                     "TZif", "usr/share/zoneinfo/Europe/Busingen": "TZif", "usr/share/zoneinfo/Europe/Vienna": "TZif",
	"usr/share/zoneinfo/posix/Europe/Berlin": "TZif", "usr/share/zoneinfo/tzdata.zi": "x",
	"usr/share/zoneinfo/zone.tab":       "# x\nDE\t+5230+01322\tEurope/Berlin\tmost\nDE\t+4742+00841\tEurope/Busingen\tB\nAT\t+4813+01620\tEurope/Vienna\n",
	"usr/share/X11/xkb/rules/evdev.lst": "! model\n  pc105 Generic\n! layout\n  us English (US)\n  de German\n  custom A user-defined layout\n! variant\n  nodeadkeys de: German (no dead keys)\n! option\n  grp Switching\n",
}

// box is a machine in a directory, whose programs are what the test says.
func box(t *testing.T, command func(args []string, input []byte) (string, error)) (*Machine, string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range image {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"etc/localtime": "/usr/share/zoneinfo/Etc/UTC", strings.TrimPrefix(steps.TimerLink, "/"): "/usr/lib/systemd/system/ota-fetch.timer", "etc/vconsole.conf": "default/keyboard"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	m := &Machine{Root: root, SetName: func(string) error { return errors.New("not here") }, Has: func(name string) bool { return name != "systemctl" }}
	m.Command = func(_ context.Context, args []string, input []byte) (string, error) {
		if args[0] == "locale" {
			return "C\nC.utf8\nPOSIX\nde_DE\nde_DE.iso88591\nde_DE.utf8\nca_ES.utf8@valencia\n../x.utf8\n", nil
		}
		return command(args, input)
	}
	return m, root
}

func nothing([]string, []byte) (string, error) { return "", nil }

func facts(t *testing.T, m *Machine) *steps.Facts {
	t.Helper()
	f, err := m.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFacts(t *testing.T) {
	m, root := box(t, nothing)
	f := facts(t, m)
	if want := []string{"C.UTF-8", "ca_ES.UTF-8@valencia", "de_DE.UTF-8"}; !slices.Equal(f.Locales, want) {
		t.Errorf("locales %q", f.Locales)
	}
	if want := []steps.Layout{{Name: "de", Text: "German"}, {Name: "de(nodeadkeys)", Text: "German (no dead keys)"}, {Name: "us", Text: "English (US)"}}; !slices.Equal(f.Layouts, want) {
		t.Errorf("layouts %q", f.Layouts)
	}
	if want := []steps.Zone{{Name: "Europe/Berlin"}, {Name: "Europe/Busingen"}, {Name: "Europe/Vienna", Country: "AT"}}; !slices.Equal(f.Zones, want) {
		t.Errorf("zones %q", f.Zones)
	}
	if f.AsksWireless() {
		t.Error("a wireless network is asked for without a device")
	}
	if err := os.MkdirAll(filepath.Join(root, "sys/class/net/wlp1s0/phy80211"), 0o755); err != nil {
		t.Fatal(err)
	}
	if f := facts(t, m); !f.AsksWireless() {
		t.Error("no wireless network is asked for")
	}
	if f.Updates != steps.On || f.First != "1" || f.Begun != "" || f.Systemd || f.Links["/etc/vconsole.conf"] != "default/keyboard" || f.Files["/etc/hostname"] != "halogen\n" || f.LivedIn() || !f.Accounts() {
		t.Errorf("%+v", f)
	}
	if want := []steps.User{{Name: "root"}, {Name: "nobody", UID: 65534}}; !slices.Equal(f.Users, want) {
		t.Errorf("users %+v", f.Users)
	}
	for name, want := range map[string]string{"etc/shadow": "alice:" + hash + ":1::::::\n", "etc/passwd": "root:x:0:0:::\nalice:x:1000:1000:::\nbad\nworse:x:y:::\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f := facts(t, m); !f.LivedIn() {
		t.Errorf("alice does not live there: %+v", f.Users)
	}
	// Names that are taken would look free.
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Facts(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without passwd: %v", err)
	}
	if err := os.Remove(filepath.Join(root, "usr/lib/systemd/system/ota-fetch.timer")); err != nil {
		t.Fatal(err)
	}
	if m.updates() != steps.Unknown {
		t.Error("a timer that is not there can be switched")
	}
}

// Without root: all but the account, twice.
func TestApply(t *testing.T) {
	var ran []string
	m, root := box(t, func(args []string, _ []byte) (string, error) {
		ran = append(ran, strings.Join(args, " "))
		return "no VC", errors.New("exit status 1")
	})
	no := false
	a := &answers.Answers{Version: 1, Language: "de_DE.UTF-8", Keyboard: "de", TimeZone: "Europe/Vienna", HostName: "kitchen", AutomaticUpdates: &no}
	for range 2 {
		all, err := steps.Plan(a, facts(t, m))
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		if err := m.Apply(t.Context(), all, &said); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), "the time zone is Europe/Vienna\n") || strings.Contains(said.String(), "no VC") {
			t.Errorf("%s", &said)
		}
	}
	for name, want := range map[string]string{"etc/locale.conf": "LANG=de_DE.UTF-8\n", "etc/hostname": "kitchen\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\tkitchen\n"} {
		if have, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(have) != want {
			t.Errorf("%s: %q, %v", name, have, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "etc/localtime")); err != nil || to != "../usr/share/zoneinfo/Europe/Vienna" {
		t.Errorf("%s, %v", to, err)
	}
	f := facts(t, m)
	if f.First != "" || f.Updates != steps.Off || !slices.Equal(ran, slices.Repeat([]string{"halogenctl language de", "setupcon --keyboard-only --force", "udevadm trigger --subsystem-match=input --action=change"}, 2)) {
		t.Errorf("%+v, ran %q", f, ran)
	}
}

// A program of the image that fails ends it, with the note of the first start, and its words
// are passed on.
func TestFails(t *testing.T) {
	m, _ := box(t, func(args []string, _ []byte) (string, error) {
		if args[0] == "chpasswd" {
			return "BAD PASSWORD\nit is too short", errors.New("exit status 1")
		}
		return "", nil
	})
	all, err := steps.Plan(&answers.Answers{Account: &answers.Account{Name: "alice", Typed: []byte("x")}}, facts(t, m))
	if err != nil {
		t.Fatal(err)
	}
	err = m.Apply(t.Context(), all, io.Discard)
	failed := new(CommandError)
	if !errors.As(err, &failed) || failed.Program != "chpasswd" || err.Error() != "chpasswd: exit status 1: BAD PASSWORD; it is too short" {
		t.Errorf("%v", err)
	}
	if f := facts(t, m); f.First != "1" || f.Begun != "alice" {
		t.Errorf("%+v", f)
	}
}

// shadowed runs the shadow suite's programs on the files below a root.
func shadowed(t *testing.T, root string) func(args []string, input []byte) (string, error) {
	return func(args []string, input []byte) (string, error) {
		switch args[0] {
		case "useradd", "usermod", "userdel", "groupdel":
			args = slices.Concat([]string{"/usr/sbin/" + args[0], "--prefix", root}, args[1:])
		case "chpasswd":
			if len(args) == 1 { // PAM's rules are not below the root
				args = append(args, "--crypt-method", "YESCRYPT")
			}
			args = slices.Concat([]string{"/usr/sbin/chpasswd", "--root", root}, args[1:])
		default:
			return "", errors.New("not here")
		}
		c := exec.CommandContext(t.Context(), args[0], args[1:]...)
		c.Stdin = bytes.NewReader(input)
		out, err := c.CombinedOutput()
		return string(out), err
	}
}

// tree is what is below a root, but for dates of passwords and copies that useradd leaves.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "-") || strings.HasSuffix(path, ".lock") {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if d.Type() == fs.ModeSymlink {
			all[name], err = os.Readlink(path)
			return err
		}
		text, err := os.ReadFile(path)
		all[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Debian's own programs make the account, and wherever the power fails, the next start
// comes to the same end.
func TestCuts(t *testing.T) {
	for _, tool := range []string{"/usr/sbin/useradd", "/usr/sbin/userdel", "/usr/sbin/chpasswd", "/usr/sbin/pwck"} {
		testkit.Need(t, tool)
	}
	testkit.Root(t, "run useradd on other files")
	no := false
	a := &answers.Answers{
		Version: 1, Language: "de_DE.UTF-8", Keyboard: "de", TimeZone: "Europe/Vienna", HostName: "kitchen", AutomaticUpdates: &no,
		Account: &answers.Account{Name: "alice", FullName: "Alice Example", PasswordHash: hash},
	}
	run := func(m *Machine, cut func(all []steps.Step) []steps.Step) error {
		all, err := steps.Plan(a, facts(t, m))
		if err != nil {
			return err
		}
		return m.Apply(t.Context(), cut(all), io.Discard)
	}
	whole := func(all []steps.Step) []steps.Step { return all }
	fresh := func() (*Machine, string) {
		m, root := box(t, nil)
		c := shadowed(t, root)
		locale := m.Command
		m.Command = func(ctx context.Context, args []string, input []byte) (string, error) {
			if args[0] == "locale" {
				return locale(ctx, args, input)
			}
			return c(args, input)
		}
		return m, root
	}
	m, root := fresh()
	if err := run(m, whole); err != nil {
		t.Fatal(err)
	}
	want := tree(t, root)
	if !strings.Contains(want["etc/passwd"], "\nalice:x:1000:1000:Alice Example:/home/alice:/bin/bash\n") || !strings.Contains(want["etc/shadow"], "\nalice:"+hash+":") ||
		!strings.Contains(want["etc/group"], "sudo:x:27:alice\n") || !strings.Contains(want["etc/subuid"], "alice:100000:65536\n") {
		t.Fatalf("%q", want)
	}
	if _, err := os.Stat(filepath.Join(root, "home/alice")); err != nil {
		t.Error(err)
	}
	judge(t, root)

	count := 0
	for n := 0; ; n++ {
		m, _ := fresh()
		end := false
		if err := run(m, func(all []steps.Step) []steps.Step {
			end = n >= len(all)
			return all[:min(n, len(all))]
		}); err != nil {
			t.Fatal(err)
		}
		f := facts(t, m)
		if (f.First == "") != end {
			t.Errorf("cut after %d steps: first start %q", n, f.First)
		}
		if end {
			break
		}
		// What useradd has not come to: it writes passwd first, then shadow, group, ...
		for _, lost := range [][]string{nil, {"gshadow", "subuid", "subgid"}, {"group", "gshadow", "subuid", "subgid"}, {"shadow", "group", "gshadow", "subuid", "subgid"}, {"passwd", "shadow"}} {
			m, root := fresh()
			if err := run(m, func(all []steps.Step) []steps.Step { return all[:n] }); err != nil {
				t.Fatal(err)
			}
			if f := facts(t, m); lost != nil && (f.Begun != "alice" || f.LivedIn()) {
				continue
			}
			for _, name := range lost {
				if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(image["etc/"+name]), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := run(m, whole); err != nil {
				t.Fatalf("cut after %d steps, without %q: %v", n, lost, err)
			}
			if have := tree(t, root); !reflect.DeepEqual(have, want) {
				t.Errorf("cut after %d steps, without %q:\n%q\nwant\n%q", n, lost, have, want)
			}
			count++
		}
	}
	if count < 20 {
		t.Errorf("only %d cuts", count)
	}
	// A password that is typed is hashed by the image's program.
	a.Account.PasswordHash, a.Account.Typed = "", []byte("pass:word ä")
	if err := run(m, whole); err != nil {
		t.Fatal(err)
	}
	if shadow := tree(t, root)["etc/shadow"]; !strings.Contains(shadow, "\nalice:$y$j9T$") || strings.Contains(shadow, hash) {
		t.Errorf("%s", shadow)
	}
}

// judge has pwck look at the accounts. It wants the home directories of all, too.
func judge(t *testing.T, root string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/usr/sbin/pwck", "-r", filepath.Join(root, "etc/passwd"), filepath.Join(root, "etc/shadow")).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "directory '") && !strings.Contains(line, "no changes") && !strings.Contains(line, "program '") {
			t.Errorf("pwck: %v\n%s", err, line)
		}
	}
}

// The image's programs are run as they are, with what they say, and without their end.
func TestCommand(t *testing.T) {
	if said, err := command(t.Context(), []string{"cat"}, []byte("x y\n")); said != "x y" || err != nil {
		t.Errorf("%q, %v", said, err)
	}
	if said, err := command(t.Context(), []string{"ls", "/no-such-file"}, nil); err == nil || !strings.Contains(said, "no-such-file") {
		t.Errorf("%q, %v", said, err)
	}
	if _, err := command(t.Context(), []string{"no-such-program"}, nil); err == nil || err.Error() != "the image does not have it" {
		t.Errorf("%v", err)
	}
	if find("cat") == "" || find("no-such-program") != "" {
		t.Errorf("%q", find("cat"))
	}
}
