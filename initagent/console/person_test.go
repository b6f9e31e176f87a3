package console

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

func TestAsk(t *testing.T) {
	keyboard, tty := terminal(t)
	f, err := os.OpenFile(tty, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &Console{files: []*os.File{f}}
	defer c.Close()
	go func() {
		// Typed once the question is there: what comes before is forgotten.
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
		_, _ = keyboard.WriteString("an answer\r")
	}()
	got, err := c.Ask("what? ", true, 0)
	if err != nil || string(got) != "an answer" {
		t.Errorf("%q, %v", got, err)
	}
}
