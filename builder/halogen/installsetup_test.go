package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/install/installtest"
	"halogenos.internal/builder/osfiles"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/uroot-cmds/setup/machine"
	"halogenos.internal/uroot-cmds/setup/steps"
)

// desktop is an image that asks at its first start: its files, and what its UKI has of them.
func desktop(t *testing.T) (root string, choices []byte) {
	t.Helper()
	root = t.TempDir()
	tree, err := rootfs.NewTree(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"usr/lib/systemd/systemd": "", "usr/sbin/useradd": "", "usr/sbin/usermod": "", "usr/sbin/userdel": "", "usr/sbin/groupdel": "", "usr/sbin/chpasswd": "",
		"usr/lib/locale/C.utf8/LC_IDENTIFICATION": "", "usr/lib/locale/de_DE.utf8/LC_IDENTIFICATION": "",
		"usr/share/X11/xkb/rules/evdev.lst": "! layout\n  us  English (US)\n  de  German\n", "usr/share/zoneinfo/zone.tab": "DE\t+5230+01322\tEurope/Berlin\n",
		"usr/share/zoneinfo/Europe/Berlin": "TZif", "usr/share/zoneinfo/Etc/UTC": "TZif", "etc/hostname": "halogen\n",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/shadow": "root:*:1::::::\n", "etc/group": "root:x:0:\nsudo:x:27:\n",
	} {
		if err := tree.AddFile(name, []byte(text), 0o755, time.Unix(1_700_000_000, 0)); err != nil {
			t.Fatal(err)
		}
	}
	c := &config.Config{Machine: config.Machine{FirstStart: config.AskAtFirstStart}, Update: config.Update{Server: "https://example.org", Channel: manifest.Stable, SignedManifest: "yes"}}
	if _, err := osfiles.Add(tree, c, time.Unix(1_700_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	has, err := osfiles.Choices(tree, c)
	if err == nil {
		choices, err = has.Encode()
	}
	if err = errors.Join(err, tree.Close()); err != nil {
		t.Fatal(err)
	}
	return root, choices
}

// firstStart takes a file of answers as the first start of an image's machine does, and returns
// what its programs are given.
func firstStart(t *testing.T, root string, file []byte) (ran []string) {
	t.Helper()
	a, err := answers.Parse(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	m := &machine.Machine{Root: root, SetName: func(string) error { return nil }, Has: func(name string) bool { return !strings.Contains(name, "ctl") },
		Command: func(_ context.Context, args []string, input []byte) (string, error) {
			if args[0] == "locale" {
				return "C\nC.utf8\nPOSIX\nde_DE.utf8\n", nil
			}
			ran = append(ran, strings.TrimSpace(strings.Join(args, " ")+" "+string(input)))
			return "", nil
		}}
	f, err := m.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := steps.Plan(a, f)
	if err == nil {
		err = m.Apply(t.Context(), all, io.Discard)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	return ran
}

// typist types lines where a person would.
type typist struct {
	lines []string
	said  strings.Builder
}

func (p *typist) Say(text string) { p.said.WriteString(text) }
func (p *typist) Line(prompt string) (string, error) {
	p.Say(prompt)
	if len(p.lines) == 0 {
		return "", io.ErrUnexpectedEOF
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
	return line, nil
}

func (p *typist) Secret(prompt string) ([]byte, error) {
	line, err := p.Line(prompt)
	return []byte(line), err
}

// What somebody answers in the installer is what the first start does.
func TestSetupRoundTrip(t *testing.T) {
	root, choices := desktop(t)
	c, err := questions.Parse(choices)
	if err != nil {
		t.Fatal(err)
	}
	who := &typist{lines: []string{"de_de", "", "", "kitchen", "no", "Alice Example", "root", "", "right horse", "right horse", "yes"}}
	file, err := askSetup(who, c, words.English, rand.Reader)
	if err != nil || len(who.lines) > 0 || bytes.Contains(file, []byte("horse")) || strings.Contains(who.said.String(), "horse") {
		t.Fatalf("%v, left %q\n%s\n%s", err, who.lines, file, &who.said)
	}
	name := filepath.Join(t.TempDir(), "setup.json")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	want := name + " can be taken:\n  language   de_DE.UTF-8\n  keyboard   de\n  time zone  Europe/Berlin\n  name       kitchen\n  updates    when asked for (ota fetch)\n" +
		"  account    alice  Alice Example, who may become root\n  asked for  wireless network (at the first start)\n"
	if err := (command{stdout: &out}).setup(t.Context(), []string{"--check", name}); err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, &out, want)
	}
	ran := firstStart(t, root, file)
	if i := slices.IndexFunc(ran, func(s string) bool { return strings.HasPrefix(s, "chpasswd --encrypted alice:$y$") }); i < 0 {
		t.Errorf("ran %q", ran)
	}
	for file, want := range map[string]string{"etc/locale.conf": "LANG=de_DE.UTF-8\n", "etc/hostname": "kitchen\n"} {
		if text, err := os.ReadFile(filepath.Join(root, file)); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "etc/localtime")); err != nil || to != "../usr/share/zoneinfo/Europe/Berlin" {
		t.Errorf("time zone %s, %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(root, steps.TimerLink)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("updates come by themselves: %v", err)
	}
}

// Each question can be left, and all of them.
func TestSetupLeft(t *testing.T) {
	root, choices := desktop(t)
	c, err := questions.Parse(choices)
	if err != nil {
		t.Fatal(err)
	}
	file, err := askSetup(&typist{lines: []string{".", ".", ".", ".", ".", ".", ""}}, c, words.English, rand.Reader)
	a, perr := answers.Parse(file)
	if err != nil || perr != nil || !slices.Equal(a.Ask, []string{"language", "keyboard", "time_zone", "host_name", "automatic_updates", "account", "wireless"}) {
		t.Errorf("%v, %v\n%s", err, perr, file)
	}
	if ran := firstStart(t, root, file); ran != nil {
		t.Errorf("ran %q", ran)
	}
	if file, err := askSetup(&typist{lines: []string{"de_de", "later"}}, c, words.English, rand.Reader); file != nil || err != nil {
		t.Errorf("%s, %v", file, err)
	}
	if file, err := askSetup(&typist{}, c, words.English, rand.Reader); file != nil || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%s, %v", file, err)
	}
}

// person is somebody at the other end of a terminal.
type person struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	said   strings.Builder // by the program
	echoed strings.Builder // by the terminal, of what is typed
}

// atTerminal has the standard input be a terminal.
func atTerminal(t *testing.T) *person {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, before := &person{t: t, master: master}, os.Stdin
	os.Stdin = slave
	t.Cleanup(func() {
		os.Stdin = before
		slave.Close()
		master.Close()
	})
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := master.Read(b)
			p.mu.Lock()
			p.echoed.Write(b[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

// Write has the person see it.
func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *person) screen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// typed is what the terminal has shown of what was typed.
func (p *person) typed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.echoed.String()
}

// types waits for the end of what is seen, and for whether what is typed will be shown.
func (p *person) types(prompt, line string, shown bool) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		mode, err := unix.IoctlGetTermios(int(p.master.Fd()), unix.TCGETS)
		if err == nil && (mode.Lflag&unix.ECHO != 0) == shown && strings.HasSuffix(p.screen(), prompt) {
			if _, err := p.master.WriteString(line + "\n"); err != nil {
				p.t.Error(err)
			}
			return
		}
	}
	p.t.Errorf("nobody asks %q:\n%s", prompt, p.screen())
	_, _ = p.master.WriteString("\x04\x04") // the end of the input: who reads is not kept
}

// With a person in front of it `halogen install --disk` asks, and the disk has the answers; the
// password is not shown, and nowhere on the disk.
func TestInstallAsks(t *testing.T) {
	_, choices := desktop(t)
	build := installtest.BuildAsking(t, nil, choices)
	m, p := newTarget(t), atTerminal(t)
	go func() {
		for _, q := range []struct {
			prompt, line string
			secret       bool
		}{
			{"[C.UTF-8]: ", "de_de", false}, {"[de]: ", ".", false}, {"[Europe/Berlin]: ", "", false}, {"[halogen]: ", "kitchen", false}, {"[yes]: ", "", false}, {"may be empty: ", "", false},
			{"- for none: ", "alice", false}, {"first start: ", "right horse", true}, {"Once more: ", "right horse", true}, {"Is this right? [yes]: ", "", false}, {"Type its name to go on: ", "sda", false},
		} {
			p.types(q.prompt, q.line, !q.secret)
		}
	}()
	var out bytes.Buffer
	c := command{stdout: &out, stderr: p, getenv: os.Getenv, executable: os.Executable}
	if err := c.installFrom(t.Context(), m.system, build, installFlags{disk: m.disk}); err != nil {
		t.Fatalf("%v\n%s%s", err, p.screen(), &out)
	}
	a, err := answers.Parse(onESP(t, m.disk))
	if err != nil || a.Language != "de_DE.UTF-8" || a.HostName != "kitchen" || a.Account == nil || a.Account.Name != "alice" || !slices.Equal(a.Ask, []string{"keyboard", "wireless"}) {
		t.Errorf("%+v, %v", a, err)
	}
	if disk, err := os.ReadFile(m.disk); err != nil || bytes.Contains(disk[:64<<20], []byte("right horse")) || strings.Contains(p.screen()+p.typed(), "right horse") || !strings.Contains(p.typed(), "kitchen") {
		t.Errorf("a password is to be read: %v\n%s", err, p.screen())
	}
	if !strings.Contains(out.String(), "a password's hash among them") {
		t.Errorf("what lies on the EFI system partition is not said:\n%s", &out)
	}
}

// onESP is the file of answers on a disk.
func onESP(t *testing.T, disk string) []byte {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, _, err := gpt.Read(f, testDisk/512, 512)
	if err != nil {
		t.Fatal(err)
	}
	esp, err := layout.Find(table, layout.ESP)
	if err != nil {
		t.Fatal(err)
	}
	at, size := table.Bytes(esp)
	files, err := fat.Open(io.NewSectionReader(f, at, size))
	if err != nil {
		t.Fatal(err)
	}
	text, err := fs.ReadFile(files, answers.OnESP)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Nobody is asked where nobody can be, where a file answers, and where the release has nothing to
// choose from, or something that is not to be trusted.
func TestInstallAsksNobody(t *testing.T) {
	_, choices := desktop(t)
	for name, c := range map[string]struct {
		choices []byte
		flags   installFlags
		says    string
	}{
		"no choices": {nil, installFlags{}, ""},
		"a serial":   {choices, installFlags{yes: "S1"}, ""},
		"a file":     {choices, installFlags{answers: []byte(`{"version":1}`)}, "the answers for the first start lie on"},
		"hostile":    {bytes.Replace(choices, []byte("German"), []byte(`\u001b[2J`), 1), installFlags{}, "cannot be read (keyboards: de: "},
	} {
		build := installtest.BuildAsking(t, nil, c.choices)
		m, p := newTarget(t), atTerminal(t)
		if c.flags.yes == "" {
			go p.types("Type its name to go on: ", "sda", true)
		}
		var out bytes.Buffer
		c.flags.disk = m.disk
		cmd := command{stdout: &out, stderr: p, getenv: os.Getenv, executable: os.Executable}
		if err := cmd.installFrom(t.Context(), m.system, build, c.flags); err != nil || strings.Contains(p.screen(), "Language") || !strings.Contains(out.String(), c.says) || strings.ContainsRune(out.String(), '\x1b') {
			t.Errorf("%s: %v\n%s%s", name, err, p.screen(), &out)
		}
	}
	s := &install.Source{Choices: &questions.Choices{}}
	if !s.Asks(install.Choice{}) || s.Asks(install.Choice{KeepRoot: true}) {
		t.Error("a root partition that is kept has its accounts")
	}
}

// Somebody who goes back to the disks is asked again: what they have answered before is gone, so
// that another root partition can be kept all the same. Answers of a file stay.
func TestAsksAgainOnScreen(t *testing.T) {
	b := &screenBackend{source: &install.Source{Choices: &questions.Choices{}}}
	host := &answers.Answers{Version: answers.Version, HostName: "kitchen"}
	if err := b.SetUp(host); err != nil || b.flags.answers == nil || b.source.ESP.Setup == nil {
		t.Fatalf("%v, %q", err, b.flags.answers)
	}
	if c := b.Choices(install.Choice{KeepRoot: true}); c != nil || b.flags.answers != nil || b.source.ESP.Setup != nil {
		t.Errorf("a root partition that is kept gets %q, and %q with the image", b.flags.answers, b.source.ESP.Setup)
	}
	if err := b.SetUp(host); err != nil || b.Choices(install.Choice{}) == nil {
		t.Errorf("%v: nobody is asked again", err)
	}
	file := []byte(`{"version":1}`)
	b.flags.setup, b.flags.answers, b.source.ESP.Setup = "setup.json", file, file
	if c := b.Choices(install.Choice{}); c != nil || !bytes.Equal(b.flags.answers, file) || !bytes.Equal(b.source.ESP.Setup, file) {
		t.Errorf("answers of a file: %q, asked %v", b.flags.answers, c != nil)
	}
}
