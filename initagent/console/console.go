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
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// maxLine bounds what is taken as one answer, in bytes.
const maxLine = 1024

// Terminals lists the device nodes of the terminals that the kernel writes to.
func Terminals() []string { return hw.Terminals("/sys") }

// A Console is all terminals at once.
type Console struct {
	terminals []*hw.Terminal
	secret    []bool // what opens something, or tells this machine, was shown on a terminal
	closed    func() // called by Close; may be nil
	language  words.Language
	// swap sets keys of a screen's keyboard; nil is for hw.SwapKeymap.
	swap func(entries []keyboard.Entry) (restore func() error, err error)
	// inputs opens the buttons of a machine; nil is for those of this one.
	inputs func() *hw.Inputs
	// sys is sysfs, by which the screen may be turned; nil is for that of this machine.
	sys fs.FS
}

// Open opens the terminals that can be opened. Having none is an error.
func Open() (*Console, error) { return open(Terminals()) }

func open(paths []string) (*Console, error) {
	c := new(Console)
	var last error
	for _, path := range paths {
		t, err := hw.OpenTerminal(path)
		if err != nil {
			last = err
			continue
		}
		c.terminals = append(c.terminals, t)
	}
	if len(c.terminals) == 0 {
		return nil, fmt.Errorf("no console can be opened: %w", last)
	}
	return c, nil
}

// Here opens the terminal that this program runs on, whatever its standard input
// is, for somebody who reads a language.
func Here(l words.Language) (*Console, error) {
	t, err := hw.OpenTerminal("/dev/tty")
	if err != nil {
		return nil, fmt.Errorf("there is no terminal to ask at: %w", err)
	}
	return &Console{terminals: []*hw.Terminal{t}, language: l}, nil
}

// ErrInterrupted is returned when Ctrl-C answers a question.
var ErrInterrupted = errors.New("interrupted")

// Language implements hw.Console.
func (c *Console) Language() words.Language { return c.language }

// Close closes the terminals.
func (c *Console) Close() error {
	var errs []error
	for i, t := range c.terminals {
		if i < len(c.secret) && c.secret[i] {
			drown(t)
		}
		errs = append(errs, t.Close())
	}
	if c.closed != nil {
		c.closed()
	}
	return errors.Join(errs...)
}

// Print shows text on every terminal.
func (c *Console) Print(text string) {
	for _, t := range c.terminals {
		show(t, text)
	}
}

// show shows text on a terminal, broken between words where that says how wide it is.
func show(t *hw.Terminal, text string) {
	columns, _ := size(t)
	text = Wrap(text, columns)
	_, _ = io.WriteString(t, strings.ReplaceAll(text, "\n", "\r\n")) // the others have it
}

// Ask shows a prompt and returns the line that is typed first on any terminal,
// without its end; the others are told where. With hidden, what is typed is not
// shown. Timeout 0 waits for ever. The caller wipes an answer that is secret.
func (c *Console) Ask(prompt string, hidden bool, timeout time.Duration) ([]byte, error) {
	c.Print(prompt)
	fds := make([]unix.PollFd, len(c.terminals))
	editors, boards := make([]lineEditor, len(c.terminals)), make([]*board, len(c.terminals))
	for i, t := range c.terminals {
		fds[i] = unix.PollFd{Fd: int32(t.Fd()), Events: unix.POLLIN}
		restore := mode(t.Fd(), func(now *unix.Termios) { lines(now, hidden) })
		defer restore()
		editors[i] = newLineEditor(t, c.language, hidden)
		boards[i] = &editors[i].board
		defer luks2.Wipe(editors[i].text[:maxLine])
	}
	buttons, closeButtons := c.buttons(boards, func(at int, key byte) (done bool) { return editors[at].press(key) })
	defer closeButtons()
	byPad := false
	for i, t := range c.terminals {
		show(t, editors[i].draw())
	}
	answer, from, err := await(fds, func() time.Duration { return timeout }, func(_ int, line []byte) bool { return true }, func() (from int, done bool) {
		from, moved, done := buttons()
		if moved {
			show(c.terminals[from], editors[from].draw())
		}
		byPad = done
		return from, done
	})
	answer = bytes.TrimRight(answer, "\r\n")
	if byPad {
		answer = append([]byte(nil), editors[from].text...)
		editors[from].hidden = editors[from].hidden || hidden
		show(c.terminals[from], editors[from].shows()+"\n")
	}
	for i, t := range c.terminals {
		switch {
		case err == nil && i != from:
			c.answered(i, from)
		case hidden && !byPad:
			show(t, "\n")
		}
		show(t, editors[i].end())
		if hidden && editors[i].drawn { // by where the pad stood
			drown(t)
		}
	}
	return answer, err
}

// answered says on a terminal that the answer has come from another one.
func (c *Console) answered(i, from int) {
	show(c.terminals[i], c.language.Say(words.AnsweredOn, filepath.Base(c.terminals[from].Path)))
}

// slice is how often an interruption is looked for.
const slice = 100 * time.Millisecond

// await hands on what is typed, until that is an answer, and returns the last of it and
// which terminal it is from. patience is how long it waits in all; 0 is for ever. Ten times a
// second at least it calls more, if that is not nil, which may answer for a terminal in another way.
func await(fds []unix.PollFd, patience func() time.Duration, answers func(from int, typed []byte) bool, more func() (from int, done bool)) (typed []byte, from int, err error) {
	// A signal that was caught would not end the waiting.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	start := time.Now()
	for {
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return nil, 0, fmt.Errorf("wait for an answer: %w", err)
		case n > 0:
			typed, from, err = readReady(fds)
			if err == nil && answers(from, typed) || err != nil && !errors.Is(err, errNothing) {
				return typed, from, err
			}
		}
		if more != nil {
			if from, done := more(); done {
				return nil, from, nil
			}
		}
		if timeout := patience(); timeout > 0 && time.Since(start) > timeout {
			return nil, 0, hw.ErrNobody
		}
		select {
		case <-interrupted:
			return nil, 0, ErrInterrupted
		default:
		}
	}
}

// errNothing says that no terminal had a line after all.
var errNothing = errors.New("nothing was typed")

// readReady takes what was typed from a terminal that has something: a whole line where
// the terminal edits it. A terminal that cannot be
// read, or whose line was hung up, is waited for no longer: others can still answer.
func readReady(fds []unix.PollFd) (typed []byte, from int, err error) {
	left := 0
	for i := range fds {
		p := &fds[i]
		if p.Fd >= 0 && p.Revents != 0 {
			buf := make([]byte, maxLine)
			n, rerr := unix.Read(int(p.Fd), buf)
			switch {
			case rerr == nil && (n > 0 || p.Revents&(unix.POLLHUP|unix.POLLERR) == 0):
				return buf[:n], i, nil
			case errors.Is(rerr, unix.EAGAIN) || errors.Is(rerr, unix.EINTR):
			default:
				p.Fd = -1
				err = errors.Join(err, rerr)
			}
		}
		if p.Fd >= 0 {
			left++
		}
	}
	if left == 0 {
		return nil, 0, fmt.Errorf("read the answer: %w", errors.Join(io.ErrUnexpectedEOF, err))
	}
	return nil, 0, errNothing
}

// mode changes how a terminal takes what is typed, forgets what was typed before the
// question, and returns what undoes it.
func mode(fd int, change func(*unix.Termios)) (restore func()) {
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	now := *was
	change(&now)
	_ = unix.IoctlSetTermios(fd, unix.TCSETSF, &now)
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, was) }
}

// lines has a terminal edit lines, with or without echo.
func lines(now *unix.Termios, hidden bool) {
	now.Lflag |= unix.ICANON | unix.ECHO | unix.ECHOE
	now.Iflag |= unix.ICRNL
	if hidden {
		now.Lflag &^= unix.ECHO
	}
}
