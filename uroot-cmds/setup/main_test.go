package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/uroot-cmds/setup/machine"
	"halogenos.internal/uroot-cmds/setup/steps"
	"halogenos.internal/uroot-cmds/setup/wifi"
	"halogenos.internal/uroot-cmds/setup/wifi/wifitest"
)

const hash = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"

// box is a machine in a directory, with somebody at its terminal.
type box struct {
	t       *testing.T
	root    string
	lines   []string // that are typed
	said    strings.Builder
	nobody  bool
	report  *bootinfo.Report
	refuses string // what chpasswd refuses, and says
	ran     []string
	bus     string              // of its NetworkManager; "" for none
	asked   func(prompt string) // called before a line is typed; may be nil
	exits   chan int            // the codes of the process that Ctrl-C ends
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, root: t.TempDir(), report: &bootinfo.Report{Version: "7", Root: "new"}, exits: make(chan int, 9)}
	b.write(steps.FirstFile, "7\n")
	b.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	b.write("etc/group", "root:x:0:\nsudo:x:27:\n")
	b.write("etc/shadow", "root:*:1::::::\n")
	b.write("usr/share/zoneinfo/Etc/UTC", "TZif")
	return b
}

func (b *box) write(name, text string) string {
	b.t.Helper()
	at := filepath.Join(b.root, name)
	err := os.MkdirAll(filepath.Dir(at), 0o755)
	if err == nil {
		err = os.WriteFile(at, []byte(text), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return at
}

func (b *box) has(name string) bool {
	_, err := os.Stat(filepath.Join(b.root, name))
	return err == nil
}

func (b *box) Say(text string) { b.said.WriteString(text) }

func (b *box) Line(prompt string) (string, error) {
	b.Say(prompt)
	if b.asked != nil {
		b.asked(prompt)
	}
	if len(b.lines) == 0 {
		return "", io.ErrUnexpectedEOF
	}
	line := b.lines[0]
	b.lines = b.lines[1:]
	return line, nil
}

func (b *box) Secret(prompt string) ([]byte, error) {
	line, err := b.Line(prompt)
	return []byte(line), err
}

func (b *box) command(_ context.Context, args []string, input []byte) (string, error) {
	if args[0] == "chpasswd" && b.refuses != "" && strings.Contains(string(input), b.refuses) {
		return "too weak", errors.New("exit status 1")
	}
	if args[0] != "locale" {
		b.ran = append(b.ran, strings.TrimSpace(strings.Join(args, " ")+" "+string(input)))
	}
	return "", nil
}

func (b *box) cmd() command.Command {
	return cmd(place{
		machine: func() *machine.Machine {
			return &machine.Machine{Root: b.root, Command: b.command, SetName: func(string) error { return nil }, Has: func(name string) bool { return name != "systemctl" }}
		},
		terminal: b, person: func() bool { return !b.nobody },
		report:  func() (*bootinfo.Report, error) { return b.report, nil },
		answers: filepath.Join(b.root, "etc/halogen/setup.json"), handed: filepath.Join(b.root, steps.HandedFile),
		radio: func(ctx context.Context) (*wifi.Radio, error) {
			w := wifi.Usual()
			w.Look = 5 * time.Millisecond
			return wifi.Connect(ctx, b.bus, w)
		},
		exit: func(code int) { b.exits <- code },
	})
}

func TestSetup(t *testing.T) {
	b := newBox(t)
	b.nobody = true
	commandtest.Use(t, b.cmd())
	testkit.Manual(t, "setup.8")
	if code, _, errs := commandtest.Run(b.cmd()); code != command.Failed || !strings.Contains(errs, "--from FILE takes the answers from a file") {
		t.Errorf("without a terminal: %d, %q", code, errs)
	}
	for _, args := range [][]string{{"--from", "a", "--check", "b"}, {"--first-start", "--from", "a"}} {
		if code, _, errs := commandtest.Run(b.cmd(), args...); code != command.Usage || !strings.Contains(errs, "go alone") {
			t.Errorf("%q: %d, %q", args, code, errs)
		}
	}
}

// Somebody answers; a password that the image's rules refuse is asked for again.
func TestAsk(t *testing.T) {
	b := newBox(t)
	b.refuses = "weak"
	b.lines = []string{"", "box", "", "alice", "weak", "weak", "yes", "strong", "strong"}
	code, out, errs := commandtest.Run(b.cmd())
	want := []string{
		"useradd --create-home --user-group --comment  --shell /bin/bash --groups sudo alice",
		"useradd --create-home --user-group --comment  --shell /bin/bash --groups sudo alice", // it only says so here
		"chpasswd alice:strong",
	}
	if code != command.OK || strings.Join(b.ran, "\n") != strings.Join(want, "\n") || len(b.lines) > 0 || !strings.Contains(b.said.String(), "the password was not taken: too weak\n") {
		t.Errorf("%d, %s%s, ran\n%s\n%s", code, out, errs, strings.Join(b.ran, "\n"), &b.said)
	}
	if b.has(steps.FirstFile) || b.has("etc/halogen/setup-begun") {
		t.Error("the notes are wrong")
	}
	if all := b.said.String() + out + errs; strings.Contains(all, "strong") {
		t.Errorf("a password is shown:\n%s", all)
	}
}

// A machine with a wireless device and no connection asks for a network, last of all; and
// nothing of that fails the first start.
func TestWireless(t *testing.T) {
	m := wifitest.New(t)
	m.See(wifitest.Point{"Ssid": []byte("Home"), "Flags": uint32(1), "WpaFlags": uint32(0), "RsnFlags": uint32(0x188), "Strength": byte(70)})
	m.Outcome = func(p wifitest.Profile) uint32 {
		if p.Secret() == "correct horse" {
			return wifitest.Connects
		}
		return 7
	}
	asked := []string{"", "box", "", "-", "yes"}
	for _, c := range []struct {
		name  string
		but   func(*box)
		lines []string
		said  string
	}{
		{"a network", func(*box) {}, []string{"1", "wrong horse", "correct horse"}, "Home: wrong password, or the signal is too weak to tell\nPassword of Home (not shown; Enter goes back): Connecting to Home ...\n"},
		{"later", func(*box) {}, []string{"later"}, "Later, then: the desktop's network settings"},
		{"the terminal ends", func(*box) {}, nil, "no wireless network was set up: unexpected EOF\n"},
		{"no bus", func(b *box) { b.bus = filepath.Join(b.root, "none") }, nil, "Looking whether there is a network ...\n"},
		{"no device", func(b *box) { os.RemoveAll(filepath.Join(b.root, "sys")) }, nil, ""},
	} {
		b := newBox(t)
		b.bus = m.Path
		b.write("sys/class/net/wlan0/phy80211/index", "0\n")
		c.but(b)
		b.lines = append(slices.Clone(asked), c.lines...)
		code, out, errs := commandtest.Run(b.cmd(), "--first-start")
		said := b.said.String()
		if code != command.OK || errs != "" || len(b.lines) > 0 || b.has(steps.FirstFile) || !strings.Contains(said, c.said) || strings.Contains(said+out, "correct horse") {
			t.Errorf("%s: %d, %q, %q, left %q\n%s", c.name, code, out, errs, b.lines, said)
		}
		if (c.said == "") == strings.Contains(said, "whether there is a network") {
			t.Errorf("%s:\n%s", c.name, said)
		}
	}
	all := m.Profiles()
	if len(all) != 2 || !all[0].Deleted || all[1].Deleted || !all[1].OnDisk || all[1].SSID() != "Home" {
		t.Errorf("%+v", all)
	}
	// What is answered by a file asks nobody.
	b := newBox(t)
	b.bus = m.Path
	b.write("sys/class/net/wlan0/phy80211/index", "0\n")
	b.write(steps.HandedFile, `{"version":1,"host_name":"box"}`)
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || b.said.Len() > 0 {
		t.Errorf("%d, %q, %q\n%s", code, out, errs, &b.said)
	}
}

// What the installer left is asked for together with its answers taken: a network alone after
// them, and all of it again where it is put off.
func TestInstallerLeft(t *testing.T) {
	m := wifitest.New(t)
	b := newBox(t)
	b.bus = m.Path
	b.write("sys/class/net/wlan0/phy80211/index", "0\n")
	handed := `{"version":1,"time_zone":"Etc/UTC","host_name":"box","account":{"name":"alice","password_hash":"` + hash + `"},"ask":["wireless"]}`
	b.write(steps.HandedFile, handed)
	b.lines = []string{"later"}
	code, out, errs := commandtest.Run(b.cmd(), "--first-start")
	if code != command.OK || errs != "" || len(b.lines) > 0 || b.has(steps.FirstFile) || b.has(steps.HandedFile) || !slices.Contains(b.ran, "chpasswd --encrypted alice:"+hash) || !strings.HasPrefix(b.said.String(), "\nLooking whether there is a network") {
		t.Errorf("a network: %d, %q, %q, ran %q\n%s", code, out, errs, b.ran, &b.said)
	}
	b = newBox(t)
	b.refuses = "$y$" // nobody could type it again: all is asked for
	b.write(steps.HandedFile, strings.Replace(handed, `"host_name":"box",`, "", 1))
	b.lines = []string{"", "box", "", "-", "yes"}
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || len(b.lines) > 0 || b.has(steps.FirstFile) || !strings.Contains(out, "the answers of the installation were not taken: chpasswd: ") {
		t.Errorf("a hash that is refused: %d, %q, %q, left %q\n%s", code, out, errs, b.lines, &b.said)
	}
	b = newBox(t)
	b.write(steps.HandedFile, strings.Replace(handed, `"wireless"`, `"language","automatic_updates"`, 1))
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || b.said.Len() > 0 || b.has(steps.FirstFile) || !strings.Contains(out, "the account alice is made") {
		t.Errorf("nothing that this image has a choice of: %d, %q, %q\n%s", code, out, errs, &b.said)
	}
	b = newBox(t)
	b.write(steps.HandedFile, `{"version":1,"time_zone":"Etc/UTC","ask":["host_name"]}`)
	b.lines = []string{"later"}
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || !b.has(steps.FirstFile) || !b.has(steps.HandedFile) || b.has("etc/localtime") {
		t.Errorf("put off: %d, %q, %q\n%s", code, out, errs, &b.said)
	}
	b.lines = []string{"box", "yes"}
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || b.has(steps.FirstFile) || !strings.Contains(out, "the time zone is Etc/UTC\nthe machine's name is box\n") {
		t.Errorf("the start after that: %d, %q, %q\n%s", code, out, errs, &b.said)
	}
}

// Somebody who stands in front of the machine at its first start, and ends the terminal's input
// (Ctrl-D) instead of answering, does not come by the questions that the installer has answered:
// an account of their own could become root in the place of the owner's.
func TestInstallerLeftUnanswered(t *testing.T) {
	b := newBox(t)
	b.write(steps.HandedFile, `{"version":1,"account":{"name":"alice","password_hash":"`+hash+`"},"ask":["host_name"]}`)
	asks := 0
	b.asked = func(string) {
		if asks++; asks == 2 {
			b.lines = []string{"", "box", "", "mallory", "evil horse", "evil horse", "yes"}
		}
	}
	code, out, errs := commandtest.Run(b.cmd(), "--first-start")
	if code != command.Failed || asks != 1 || len(b.ran) > 0 || !b.has(steps.FirstFile) || !b.has(steps.HandedFile) {
		t.Errorf("%d, %q, %q, asked %d times, ran %q\n%s", code, out, errs, asks, b.ran, &b.said)
	}
}

// A device whose driver takes long to come, or that is plugged in while somebody answers, is
// asked for.
func TestWirelessComesLate(t *testing.T) {
	m := wifitest.New(t)
	b := newBox(t)
	b.bus = m.Path
	b.asked = func(prompt string) {
		if strings.HasPrefix(prompt, "Is this right?") {
			b.write("sys/class/net/wlan0/phy80211/index", "0\n")
		}
	}
	b.lines = []string{"", "box", "", "-", "yes", "later"}
	code, out, errs := commandtest.Run(b.cmd(), "--first-start")
	if code != command.OK || len(b.lines) > 0 || !strings.Contains(b.said.String(), "None is seen.") {
		t.Errorf("%d, %s%s, left %q\n%s", code, out, errs, b.lines, &b.said)
	}
}

// Ctrl-C at a question ends the process. All is in place when a network is asked for, and that
// is not a failure.
func TestInterrupted(t *testing.T) {
	m := wifitest.New(t)
	for at, want := range map[string]int{"Name of this machine": command.Failed, "Number of a network": command.OK} {
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		b := newBox(t)
		b.bus = m.Path
		b.write("sys/class/net/wlan0/phy80211/index", "0\n")
		b.asked = func(prompt string) {
			if strings.HasPrefix(prompt, at) {
				interrupt()
				code := <-b.exits
				if code != want || b.has(steps.FirstFile) != (want == command.Failed) {
					t.Errorf("%s: exit code %d, want %d; the next start asks: %v", at, code, want, b.has(steps.FirstFile))
				}
				b.lines = nil // the process has ended
			}
		}
		b.lines = []string{"", "box", "", "-", "yes", "later"}
		b.cmd().Exec(ctx, []string{"--first-start"}, io.Discard, io.Discard, 0)
		if ctx.Err() == nil {
			t.Errorf("%s is not asked:\n%s", at, &b.said)
		}
	}
}

func TestLater(t *testing.T) {
	b := newBox(t)
	b.lines = []string{"later"}
	if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || !strings.Contains(out, "Later, then") || !b.has(steps.FirstFile) || b.ran != nil {
		t.Errorf("%d, %q, %q, ran %q", code, out, errs, b.ran)
	}
}

func TestFile(t *testing.T) {
	b := newBox(t)
	b.nobody = true
	good := b.write("good.json", `{"version":1,"host_name":"box","account":{"name":"alice","password_hash":"`+hash+`"}}`)
	code, out, errs := commandtest.Run(b.cmd(), "--check", good)
	if code != command.OK || out != good+" can be taken:\n  name       box\n  account    alice, who may become root\n" || b.ran != nil || b.has("etc/hostname") {
		t.Errorf("%d, %q, %q, ran %q", code, out, errs, b.ran)
	}
	for file, want := range map[string]string{
		b.write("plain.json", `{"version":1,"account":{"name":"alice","password":"x"}}`):  "a password that can be read is not taken",
		b.write("other.json", `{"version":1,"language":"xx_XX.UTF-8","host_name":"box"}`): "the image has no xx_XX.UTF-8",
		b.write("long.json", `{"version":1}`+strings.Repeat(" ", 20<<10)):                 "too large",
		b.root:                         "not a regular file",
		filepath.Join(b.root, "no-it"): "no such file",
	} {
		for _, option := range []string{"--check", "--from"} {
			if code, out, errs := commandtest.Run(b.cmd(), option, file); code != command.Failed || !strings.Contains(errs, want) || out != "" || b.ran != nil || b.has("etc/hostname") {
				t.Errorf("%s %s: %d, %q, %q", option, file, code, out, errs)
			}
		}
	}
	code, out, errs = commandtest.Run(b.cmd(), "--from", good)
	if code != command.OK || !strings.HasPrefix(out, "the machine's name is box\n") || len(b.ran) != 2 || b.ran[1] != "chpasswd --encrypted alice:"+hash || b.has(steps.FirstFile) {
		t.Errorf("%d, %q, %q, ran %q", code, out, errs, b.ran)
	}
}

// What the start of the system does, and what keeps it from asking.
func TestFirstStart(t *testing.T) {
	asked := []string{"", "box", "", "-", "yes"}
	for _, c := range []struct {
		name  string
		but   func(*box)
		lines []string
		out   string
		done  bool
	}{
		{"asks", func(*box) {}, asked, "the machine's name is box\n", true},
		// As it is after a first start that was seen to, with whichever system, and on a machine
		// that was installed by a release that left no note.
		{"not the first", func(b *box) { os.Remove(filepath.Join(b.root, steps.FirstFile)) }, nil, "nothing is asked: this is not the machine's first start\n", true},
		{"installed by a release that asked nothing", func(b *box) { b.write(steps.FirstFile, "6\n") }, nil, "", true},
		{"put off with another release", func(b *box) { b.write(steps.FirstFile, steps.Claim().Text) }, asked, "the machine's name is box\n", true},
		{"no boot of ours", func(b *box) { b.report = nil }, nil, "nothing is asked: this is not the start of a machine\n", false},
		{"an update on trial", func(b *box) {
			b.report = &bootinfo.Report{Trial: true}
			b.write("etc/hosts", strings.Repeat("0.0.0.0 x\n", 1<<19))
		}, nil, "nothing is asked: an update is on trial\n", false},
		{"no root partition", func(b *box) { b.report = &bootinfo.Report{Root: "none"} }, nil, "nothing is asked: there is no root partition to keep it\n", false},
		{"a usual start", func(b *box) { b.report = &bootinfo.Report{Version: "7", Root: "tpm"} }, asked, "the machine's name is box\n", true},
		{"nobody", func(b *box) { b.nobody = true }, nil, "nothing is asked: there is no terminal to ask at\n", false},
		{"lived in", func(b *box) {
			b.write("etc/passwd", "alice:x:1000:1000:::\n")
			b.write("etc/shadow", "alice:$y$x:1::::::\n")
		}, nil, "", true},
		{"answers of the installer", func(b *box) { b.write(steps.HandedFile, `{"version":1,"host_name":"box"}`) }, nil, "the machine's name is box\n", true},
		{"answers of the installer that leave some", func(b *box) {
			b.write(steps.HandedFile, `{"version":1,"time_zone":"Etc/UTC","ask":["host_name","account"]}`)
		},
			[]string{"box", "", "-", "yes"}, "the machine's name is box\n", true},
		{"answers of the installer that leave some, and nobody", func(b *box) {
			b.write(steps.HandedFile, `{"version":1,"host_name":"box","ask":["time_zone","account","wireless"]}`)
			b.nobody = true
		}, nil, "the machine's name is box\n", true},
		{"answers of the image that leave some", func(b *box) {
			b.write("etc/halogen/setup.json", `{"version":1,"time_zone":"Etc/UTC","ask":["host_name"]}`)
		},
			[]string{"box", "yes"}, "the machine's name is box\n", true},
		{"answers of the installer that cannot be taken", func(b *box) { b.write(steps.HandedFile, `{"version":1,"keyboard":"de"}`) }, asked,
			"the answers of the installation were not taken: HANDED: keyboard: the image has no list of keyboard layouts (Debian: the package xkb-data)\nthe time zone is Etc/UTC\nthe machine's name is box\n", true},
		{"answers of the installer and of the image", func(b *box) {
			b.write(steps.HandedFile, `{"version":1,"host_name":"other"}`)
			b.write("etc/halogen/setup.json", `{"version":1,"host_name":"box"}`)
		}, nil, "the machine's name is box\n", true},
		{"answers of the image", func(b *box) { b.write("etc/halogen/setup.json", `{"version":1,"host_name":"box"}`) }, nil, "the machine's name is box\n", true},
	} {
		b := newBox(t)
		c.but(b)
		b.lines = c.lines
		code, out, errs := commandtest.Run(b.cmd(), "--first-start")
		out = strings.ReplaceAll(out, filepath.Join(b.root, steps.HandedFile), "HANDED")
		if c.done && b.has(steps.HandedFile) && c.out != "" && !strings.HasPrefix(c.out, "nothing") {
			t.Errorf("%s: the installer's answers are left", c.name)
		}
		if code != command.OK || errs != "" || out != c.out && !strings.HasPrefix(out, c.out+"\n") && !(c.out != "" && strings.HasPrefix(out, "the time zone is Etc/UTC\n"+c.out)) || len(b.lines) > 0 || b.has(steps.FirstFile) == c.done {
			t.Errorf("%s: %d, %q, %q, left %q\n%s", c.name, code, out, errs, b.lines, &b.said)
		}
	}
	// Whether somebody is there or not: the start goes on.
	b := newBox(t)
	b.lines = asked
	b.write("etc/halogen/setup.json", `{}`)
	if code, _, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.Failed || !strings.Contains(errs, "has no version") || len(b.lines) != len(asked) || !b.has(steps.FirstFile) {
		t.Errorf("answers that cannot be taken: %d, %q", code, errs)
	}
	// Cut before the last notes went: the account is whole, and nobody is asked for another.
	// Where it is another's, what was begun goes.
	for begun, want := range map[string]string{"alice": "", "bob": "userdel bob"} {
		b = newBox(t)
		b.write(steps.BegunFile, begun+"\n")
		b.write("etc/passwd", "alice:x:1000:1000:::\nbob:x:1001:1001:::\n")
		b.write("etc/shadow", "alice:$y$x:1::::::\nbob:!:1::::::\n")
		code, out, errs := commandtest.Run(b.cmd(), "--first-start")
		if code != command.OK || strings.Join(b.ran, "\n") != want || b.has(steps.FirstFile) || b.has(steps.BegunFile) {
			t.Errorf("%s begun: %d, %q, %q, ran %q", begun, code, out, errs, b.ran)
		}
	}
	// A lock that a cut has left keeps nobody from making the account; without one it is not ours.
	for _, begun := range []bool{true, false} {
		b = newBox(t)
		if begun {
			b.write(steps.BegunFile, "alice\n")
		}
		b.write("etc/passwd.lock", "1234")
		b.write("etc/halogen/setup.json", `{"version":1,"account":{"name":"alice","password_hash":"`+hash+`"}}`)
		if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || b.has("etc/passwd.lock") == begun {
			t.Errorf("a lock, begun %v: %d, %q, %q", begun, code, out, errs)
		}
	}
	// The next release asks, since this one has not been answered.
	b = newBox(t)
	for _, release := range []string{"7", "8"} {
		b.report.Version, b.lines = release, []string{"later"}
		if code, out, errs := commandtest.Run(b.cmd(), "--first-start"); code != command.OK || !strings.Contains(out, "Later, then") {
			t.Errorf("%s put off: %d, %q, %q", release, code, out, errs)
		}
	}
}
