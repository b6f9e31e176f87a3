package hw

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Terminals lists the device nodes of the terminals that the kernel writes to: all
// that the command line names (console=), and not the last of them alone, which is
// what /dev/console is.
func Terminals(sys string) []string {
	text, err := os.ReadFile(filepath.Join(sys, "class/tty/console/active"))
	var paths []string
	for _, name := range strings.Fields(string(text)) {
		if name == "tty0" {
			name = "tty1" // tty0 is whichever is in front
		}
		if path := "/dev/" + name; !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	if err != nil || len(paths) == 0 {
		return []string{"/dev/console"}
	}
	return paths
}

// IsScreen reports whether a terminal is a screen with a keyboard, and not the end
// of a line.
func IsScreen(path string) bool {
	digits, virtual := strings.CutPrefix(filepath.Base(path), "tty")
	return virtual && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// Cursor says how many rows a screen has, and in which of them, counted from 0, the cursor is
// (vcs(4)).
func (t *Terminal) Cursor() (rows, row int, err error) {
	if !IsScreen(t.Path) {
		return 0, 0, fmt.Errorf("the cursor of %s: it is not a screen", t.Path)
	}
	dir, name := filepath.Split(t.Path)
	f, err := os.Open(filepath.Join(dir, "vcsa"+strings.TrimPrefix(name, "tty")))
	if err != nil {
		return 0, 0, fmt.Errorf("the cursor of %s: %w", t.Path, err)
	}
	defer f.Close()
	var header [4]byte // rows, columns, column and row of the cursor
	if _, err := io.ReadFull(f, header[:]); err != nil {
		return 0, 0, fmt.Errorf("the cursor of %s: %w", t.Path, err)
	}
	return int(header[0]), int(header[3]), nil
}

// patience is how long a terminal may take for one text.
const patience = time.Second

// A Terminal is one that is written to without waiting for ever: a line whose other
// end has stopped it (Ctrl-S, no cable) keeps neither the boot nor other terminals.
type Terminal struct {
	Path    string
	fd      int
	stopped bool // it took nothing for so long that what follows is dropped until it does
}

// OpenTerminal opens a terminal; nobody's controlling one.
func OpenTerminal(path string) (*Terminal, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Terminal{Path: path, fd: fd}, nil
}

// Fd is the file descriptor, which does not block.
func (t *Terminal) Fd() int { return t.fd }

// Close closes the terminal.
func (t *Terminal) Close() error { return unix.Close(t.fd) }

// Write writes all that the terminal takes in time.
func (t *Terminal) Write(text []byte) (int, error) {
	wait := patience
	if t.stopped {
		wait = 0
	}
	end := time.Now().Add(wait)
	for done := 0; ; {
		n, err := unix.Write(t.fd, text[done:])
		done += max(n, 0)
		switch {
		case done == len(text):
			t.stopped = false
			return done, nil
		case n == 0:
			return done, fmt.Errorf("write to %s: %w", t.Path, io.ErrShortWrite)
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return done, fmt.Errorf("write to %s: %w", t.Path, err)
		case errors.Is(err, unix.EAGAIN):
			fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLOUT}}
			left := max(time.Until(end), 0)
			if ready, err := unix.Poll(fds, int(left.Milliseconds())); ready == 0 && err == nil {
				t.stopped = true
				return done, fmt.Errorf("write to %s: %w", t.Path, os.ErrDeadlineExceeded)
			}
		}
	}
}

// everywhere writes to all terminals, whichever there are at the time: a driver may
// bring one.
type everywhere struct {
	list func() []string
	open map[string]*Terminal
}

// Write implements io.Writer. What a terminal does not take is its loss.
func (e *everywhere) Write(text []byte) (int, error) {
	paths := e.list()
	for _, path := range paths {
		e.write(path, text)
	}
	for path, t := range e.open {
		if !slices.Contains(paths, path) {
			_ = t.Close() // nothing that counts is lost
			delete(e.open, path)
		}
	}
	return len(text), nil
}

// write writes to one terminal. A program that had it to itself, as the recovery
// console's shell has, takes it from everybody when it ends (the kernel hangs it
// up): then it is opened again.
func (e *everywhere) write(path string, text []byte) {
	for range 2 {
		t := e.open[path]
		if t == nil {
			var err error
			if t, err = OpenTerminal(path); err != nil {
				return // a machine must boot without a console
			}
			e.open[path] = t
		}
		done, err := t.Write(text)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		text = text[done:]
		_ = t.Close() // nothing that counts is lost
		delete(e.open, path)
	}
}
