package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// EscapeKey leaves an attached console: Ctrl-].
const EscapeKey = 0x1d

// Attach hands the serial console to a user, from its first byte on: output goes to
// stdout, what is typed on stdin goes to the guest, every key of it (a terminal is
// put into raw mode, so Ctrl-C is the guest's). It returns when the machine ends
// (detached is false), when EscapeKey is typed (detached is true; the machine goes
// on) or when ctx ends. The end of stdin ends nothing.
//
// A read from stdin that is under way cannot be taken back: it consumes what is
// typed next, so a program should attach as the last thing it does with stdin.
func (m *Machine) Attach(ctx context.Context, stdin io.Reader, stdout io.Writer) (detached bool, err error) {
	if f, ok := stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		saved, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return false, fmt.Errorf("attach: raw mode: %w", err)
		}
		defer func() { err = errors.Join(err, term.Restore(int(f.Fd()), saved)) }()
	}
	return m.console.attach(ctx, stdin, stdout)
}

func (c *Console) attach(ctx context.Context, stdin io.Reader, stdout io.Writer) (detached bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	escaped := make(chan struct{})
	go c.typeFrom(stdin, escaped)
	output := make(chan error, 1)
	go func() { output <- c.follow(ctx, stdout) }()
	select {
	case err := <-output:
		return false, err
	case <-escaped:
		cancel()
		return true, <-output
	}
}

// typeFrom copies input to the guest until it ends, the guest does, or the escape
// key is typed.
func (c *Console) typeFrom(stdin io.Reader, escaped chan<- struct{}) {
	buf := make([]byte, 1024)
	for {
		n, err := stdin.Read(buf)
		i := bytes.IndexByte(buf[:n], EscapeKey)
		if i >= 0 {
			n = i
		}
		if n > 0 && c.Send(buf[:n]) != nil {
			return // the machine has ended, which the output tells
		}
		if i >= 0 {
			close(escaped)
			return
		}
		if err != nil {
			return
		}
	}
}
