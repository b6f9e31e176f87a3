// Package shell is the recovery console's shell: it reads whole lines, which the
// kernel's terminal edits, on a screen and on a serial line alike.
//
// It refuses to end for a typing error, or for a command that failed: leaving the
// console restarts the machine, so only `exit` and the end of the input leave.
package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// Prompts, of a new command and of one that goes on.
const (
	prompt = "$ "
	more   = "> "
)

// A Shell runs what is typed.
type Shell struct {
	runner      *interp.Runner
	parser      *syntax.Parser
	out, errs   io.Writer
	interrupted <-chan os.Signal

	mu     sync.Mutex
	begun  strings.Builder    // a command that goes on
	cancel context.CancelFunc // of the one that runs
}

// New returns a shell. The commands that it starts have in as their standard
// input. Ctrl-C comes by interrupted: it ends a loop of the shell's own, and
// forgets a command that was begun; a program that runs gets it from the
// terminal.
func New(in *os.File, out, errs io.Writer, interrupted <-chan os.Signal) (*Shell, error) {
	runner, err := interp.New(interp.StdIO(in, out, errs), interp.ExecHandlers(unhurried))
	if err != nil {
		return nil, fmt.Errorf("start the shell: %w", err)
	}
	return &Shell{runner: runner, parser: syntax.NewParser(), out: out, errs: errs, interrupted: interrupted}, nil
}

// unhurried lets a program end by itself: one that is in the middle of a write
// does not stop at Ctrl-C, and must not be killed for it.
func unhurried(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error { return next(context.WithoutCancel(ctx), args) }
}

// Interact reads lines until the shell is left. in is a terminal, which gives a
// line at a time, so that a program reads what is typed for it.
func (s *Shell) Interact(in io.Reader) error {
	done := make(chan struct{})
	defer close(done)
	go s.watch(done)
	lines := bufio.NewReader(in)
	fmt.Fprint(s.out, prompt)
	for {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read a command: %w", err)
		}
		if s.take(line) {
			return nil
		}
		if err != nil {
			fmt.Fprintln(s.out)
			return nil
		}
		s.mu.Lock()
		next := prompt
		if s.begun.Len() > 0 {
			next = more
		}
		s.mu.Unlock()
		fmt.Fprint(s.out, next)
	}
}

// watch sees to Ctrl-C.
func (s *Shell) watch(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-s.interrupted:
		}
		s.mu.Lock()
		if s.cancel != nil {
			s.cancel()
		} else {
			s.begun.Reset()
			fmt.Fprint(s.out, "\n"+prompt)
		}
		s.mu.Unlock()
	}
}

// take runs the command that a line completes, and reports whether it leaves the
// shell.
func (s *Shell) take(line string) (left bool) {
	s.mu.Lock()
	s.begun.WriteString(line)
	text := s.begun.String()
	file, err := s.parser.Parse(strings.NewReader(text), "")
	if syntax.IsIncomplete(err) {
		s.mu.Unlock()
		return false
	}
	s.begun.Reset()
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.cancel = nil
		s.mu.Unlock()
		cancel()
	}()
	if err != nil {
		fmt.Fprintln(s.errs, err)
		return false
	}
	for _, stmt := range file.Stmts {
		err := s.runner.Run(ctx, stmt)
		if s.runner.Exited() {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if _, status := interp.IsExitStatus(err); err != nil && !status {
			fmt.Fprintln(s.errs, err)
		}
	}
	return false
}

// Script runs a whole text, and returns its exit status as interp.ExitStatus.
func (s *Shell) Script(text io.Reader, name string, args ...string) error {
	file, err := s.parser.Parse(text, name)
	if err != nil {
		return err
	}
	if err := interp.Params(append([]string{"--"}, args...)...)(s.runner); err != nil {
		return err
	}
	return s.runner.Run(context.Background(), file)
}

// Status is the exit status that an error of Script stands for.
func Status(err error) int {
	status, ok := interp.IsExitStatus(err)
	switch {
	case ok:
		return int(status)
	case err != nil:
		return 1
	}
	return 0
}
