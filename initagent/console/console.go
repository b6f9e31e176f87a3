// Package console talks to the person at the machine, on every terminal that
// the kernel writes to: a screen with a keyboard, a serial line, or both.
//
// It refuses to log: what is shown or typed here is nowhere else.
package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/hw"
)

// maxLine bounds what is taken as one answer, in bytes.
const maxLine = 1024

// Terminals lists the device nodes of the terminals that the kernel writes to.
func Terminals() []string {
	text, err := os.ReadFile("/sys/class/tty/console/active")
	names := strings.Fields(string(text))
	if err != nil || len(names) == 0 {
		return []string{"/dev/console"}
	}
	for i, name := range names {
		if name == "tty0" {
			name = "tty1" // tty0 is whichever is in front
		}
		names[i] = "/dev/" + name
	}
	return names
}

// A Console is all terminals at once.
type Console struct{ files []*os.File }

// Open opens the terminals that can be opened. Having none is an error.
func Open() (*Console, error) {
	c := new(Console)
	var last error
	for _, path := range Terminals() {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			last = err
			continue
		}
		c.files = append(c.files, f)
	}
	if len(c.files) == 0 {
		return nil, fmt.Errorf("no console can be opened: %w", last)
	}
	return c, nil
}

// Here opens the terminal that this program runs on, whatever its standard input
// is.
func Here() (*Console, error) {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("there is no terminal to ask at: %w", err)
	}
	return &Console{files: []*os.File{f}}, nil
}

// ErrInterrupted is returned when Ctrl-C answers a question.
var ErrInterrupted = errors.New("interrupted")

// Close closes the terminals.
func (c *Console) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Print shows text on every terminal.
func (c *Console) Print(text string) {
	out := strings.ReplaceAll(text, "\n", "\r\n")
	for _, f := range c.files {
		_, _ = io.WriteString(f, out)
	}
}

// Ask shows a prompt and returns the line that is typed first on any terminal,
// without its end. With hidden, what is typed is not shown. Timeout 0 waits for
// ever. The caller wipes an answer that is secret.
func (c *Console) Ask(prompt string, hidden bool, timeout time.Duration) ([]byte, error) {
	c.Print(prompt)
	fds := make([]unix.PollFd, len(c.files))
	for i, f := range c.files {
		fd := int(f.Fd())
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		restore := mode(fd, hidden)
		defer restore()
	}
	if hidden {
		defer c.Print("\n")
	}
	// A signal that was caught would not end the waiting.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	return await(fds, timeout, interrupted)
}

// slice is how often an interruption is looked for.
const slice = 100 * time.Millisecond

func await(fds []unix.PollFd, timeout time.Duration, interrupted <-chan os.Signal) ([]byte, error) {
	start := time.Now()
	for {
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("wait for an answer: %w", err)
		case n > 0:
			return readReady(fds)
		case timeout > 0 && time.Since(start) > timeout:
			return nil, hw.ErrNobody
		}
		select {
		case <-interrupted:
			return nil, ErrInterrupted
		default:
		}
	}
}

func readReady(fds []unix.PollFd) ([]byte, error) {
	for _, p := range fds {
		if p.Revents == 0 {
			continue
		}
		buf := make([]byte, maxLine)
		n, err := unix.Read(int(p.Fd), buf) // a whole line: the terminal edits it
		if err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		return bytes.TrimRight(buf[:n], "\r\n"), nil
	}
	return nil, io.ErrUnexpectedEOF
}

// mode makes a terminal edit lines, with or without echo, forgets what was typed
// before the question, and returns what undoes it.
func mode(fd int, hidden bool) (restore func()) {
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	now := *was
	now.Lflag |= unix.ICANON | unix.ECHO | unix.ECHOE
	now.Iflag |= unix.ICRNL
	if hidden {
		now.Lflag &^= unix.ECHO
	}
	_ = unix.IoctlSetTermios(fd, unix.TCSETSF, &now)
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, was) }
}
