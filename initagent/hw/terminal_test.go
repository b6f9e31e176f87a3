package hw

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal makes a pseudoterminal: the far end, and the path of ours.
func terminal(t *testing.T) (far *os.File, path string) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	number, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return far, fmt.Sprintf("/dev/pts/%d", number)
}

// FAULTS 112 (M8)
func TestTerminals(t *testing.T) {
	for active, want := range map[string][]string{
		"ttyS0 tty0\n": {"/dev/ttyS0", "/dev/tty1"}, "tty0 ttyS0\n": {"/dev/tty1", "/dev/ttyS0"}, "tty1 tty0\n": {"/dev/tty1"},
		"hvc0\n": {"/dev/hvc0"}, "\n": {"/dev/console"},
	} {
		sys := tree(t, map[string]string{"class/tty/console/active": active})
		if got := Terminals(sys); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", active, got, want)
		}
	}
	if got := Terminals(t.TempDir()); !slices.Equal(got, []string{"/dev/console"}) {
		t.Errorf("without sysfs: %q", got)
	}
	for path, want := range map[string]bool{"/dev/tty1": true, "/dev/tty63": true, "/dev/ttyS0": false, "/dev/tty": false, "/dev/console": false, "/dev/hvc0": false, "/dev/ttyUSB0": false} {
		if IsScreen(path) != want {
			t.Errorf("%s is a screen: %v", path, !want)
		}
	}
}

// reads returns what arrives at the far end until it has the text.
func reads(t *testing.T, far *os.File, until string) string {
	t.Helper()
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(until)) {
		fds := []unix.PollFd{{Fd: int32(far.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5000); n != 1 || err != nil {
			t.Fatalf("%q did not arrive, only %q (%v)", until, seen, err)
		}
		n, err := far.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, buf[:n]...)
	}
	return string(seen)
}

// FAULTS 112 (M8): what the boot says is on the screen and on the serial line, in
// whichever order the kernel names them; a line that is stopped costs a second once.
func TestLogEverywhere(t *testing.T) {
	screen, tty1 := terminal(t)
	serial, ttyS0 := terminal(t)
	late, hvc0 := terminal(t)
	_, stopped := terminal(t)
	paths := []string{stopped, ttyS0, "/nowhere", tty1}
	l := NewLog(&everywhere{list: func() []string { return paths }, open: map[string]*Terminal{}}, io.Discard)
	l.Say("first")
	reads(t, screen, "halogen: first\r")
	reads(t, serial, "halogen: first\r")
	paths = append(paths, hvc0)
	if err := l.Step("disk", "why", func() error { return os.ErrNotExist }); err == nil {
		t.Error("the step's error is gone")
	}
	for _, far := range []*os.File{screen, serial, late} {
		if text := reads(t, far, "file does not exist"); !strings.Contains(text, "halogen: disk FAILED after") {
			t.Errorf("a terminal shows %q", text)
		}
	}
	began := time.Now()
	for i := range 100 {
		l.Say("%s %d", strings.Repeat("x", 1000), i)
		for _, far := range []*os.File{screen, serial, late} {
			reads(t, far, fmt.Sprintf("xxx %d\r", i))
		}
	}
	if took := time.Since(began); took < patience || took >= 100*patience {
		t.Errorf("one stopped line cost %v", took)
	}
	paths = paths[1:]
	l.Say("last")
	reads(t, screen, "halogen: last")
}

// A program that had a terminal to itself takes it from everybody when it ends, as
// the far end does here: what the boot says then still arrives.
func TestLogAfterHangup(t *testing.T) {
	far, path := terminal(t)
	other, gone := terminal(t)
	hung, err := OpenTerminal(gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := hung.Write([]byte("x")); !errors.Is(err, unix.EIO) {
		t.Fatalf("the terminal was not hung up: %v", err)
	}
	log := &everywhere{list: func() []string { return []string{path} }, open: map[string]*Terminal{path: hung}}
	if _, err := log.Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	reads(t, far, "after")
}
