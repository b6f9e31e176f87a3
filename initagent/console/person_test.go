package console

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/hw"
)

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shell")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A shell that ends with a failure, after a while, is started again; the console
// is left by leaving it.
func TestStay(t *testing.T) {
	_, tty := terminal(t)
	notes := filepath.Join(t.TempDir(), "notes")
	path := script(t, `echo "$TERM" >>`+notes+`; [ $(wc -l <`+notes+`) -ge 2 ]`)
	if err := everywhere(path, []string{"/dev/no-such-terminal", tty}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(notes); string(text) != "dumb\ndumb\n" {
		t.Errorf("the shell ran as %q, %v", text, err)
	}
}

func TestStayGivesUp(t *testing.T) {
	_, tty := terminal(t)
	if err := everywhere(script(t, "exit 3"), []string{tty}); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a shell that cannot run: %v", err)
	}
}

func TestKind(t *testing.T) {
	for tty, want := range map[string]string{"/dev/tty1": "linux", "/dev/ttyS0": "dumb", "/dev/hvc0": "dumb", "/dev/console": "dumb", "/dev/tty": "dumb"} {
		if got := kind(tty); got != want {
			t.Errorf("%s is %q, want %q", tty, got, want)
		}
	}
}

// types answers on a terminal once the question is there: what comes before is
// forgotten.
func types(keyboard *os.File, answer string) {
	buf := make([]byte, 64)
	var seen string
	for !strings.Contains(seen, "? ") {
		n, err := keyboard.Read(buf)
		if err != nil {
			return
		}
		seen += string(buf[:n])
	}
	for range 20 {
		if waiting, err := unix.IoctlGetTermios(int(keyboard.Fd()), unix.TCGETS); err == nil && waiting.Lflag&unix.ECHO == 0 {
			break
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil)
	}
	_, _ = keyboard.WriteString(answer)
}

// FAULTS 112 (M8): a question is on every terminal, the first answer wins, and the
// others say so; one that is gone or that takes nothing stops nobody.
func TestAsk(t *testing.T) {
	keyboard, tty := terminal(t)
	other, second := terminal(t)
	gone, third := terminal(t)
	_, stuck := terminal(t)
	c, err := open([]string{second, "/nowhere", third, stuck, tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		_, _ = c.terminals[2].Write(bytes.Repeat([]byte("x"), 4096)) // nobody reads there
	}
	gone.Close()
	go types(keyboard, "an answer\r")
	got, err := c.Ask("what? ", true, 0)
	if err != nil || string(got) != "an answer" {
		t.Fatalf("%q, %v", got, err)
	}
	shown, buf := "", make([]byte, 4096)
	for want := "what? (answered on " + filepath.Base(tty) + ")"; !strings.Contains(shown, want); {
		fds := []unix.PollFd{{Fd: int32(other.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5000); n != 1 || err != nil {
			t.Fatalf("the other terminal shows %q, %v; want %q", shown, err, want)
		}
		n, err := other.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		shown += string(buf[:n])
	}
}

// Where every terminal is gone nobody is waited for.
func TestAskNobody(t *testing.T) {
	one, first := terminal(t)
	two, second := terminal(t)
	c, err := open([]string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	one.Close()
	two.Close()
	if got, err := c.Ask("what? ", false, 0); err == nil {
		t.Errorf("answered %q", got)
	}
	if c, err := open([]string{"/nowhere"}); err == nil {
		t.Errorf("opened %v", c)
	}
}

func TestAskTimeout(t *testing.T) {
	_, tty := terminal(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Ask("what? ", false, time.Millisecond); !errors.Is(err, hw.ErrNobody) {
		t.Errorf("nobody answers: %v", err)
	}
}
