package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"halogenos.internal/boot/questions"
	"halogenos.internal/builder/install"
)

// lines is a terminal at which somebody is asked a line at a time. The kernel edits the lines.
type lines struct {
	ctx context.Context
	in  *os.File
	out io.Writer
}

// Say implements questions.Terminal.
func (l *lines) Say(text string) { fmt.Fprint(l.out, text) }

// Line implements questions.Terminal.
func (l *lines) Line(prompt string) (string, error) {
	l.Say(prompt)
	line, err := readLine(l.in)
	return line, errors.Join(l.ctx.Err(), err)
}

// Secret implements questions.Terminal.
func (l *lines) Secret(prompt string) ([]byte, error) {
	l.Say(prompt)
	line, err := term.ReadPassword(int(l.in.Fd()))
	l.Say("\n")
	if err = errors.Join(l.ctx.Err(), err); err != nil {
		clear(line)
		return nil, err
	}
	return line, nil
}

// typedHere is said before the questions, since the installer does not change what its own
// keyboard types.
const typedHere = `
A password is typed on the keyboard as this system has it, whatever keyboard
is chosen for the new one: take letters that are the same on both, or leave
the account for the first start.
`

// askSetup asks what the first start would, and returns the file with the answers; nil leaves
// all of it for the first start.
func askSetup(t questions.Terminal, c *questions.Choices, random io.Reader) ([]byte, error) {
	if c.Accounts {
		t.Say(typedHere)
	}
	p := &questions.Person{Terminal: t, Choices: c, Leaves: true}
	a, err := p.Ask(nil)
	if errors.Is(err, questions.ErrLater) {
		t.Say("Later, then: the first start asks.\n")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return install.SetupFile(a, random)
}

// setUp asks for the answers of a source's first start, where somebody is to be asked.
func (c command) setUp(ctx context.Context, s *install.Source, o *installFlags) (err error) {
	if !s.Asks(o.choice()) {
		return nil
	}
	o.answers, err = askSetup(&lines{ctx, os.Stdin, c.stderr}, s.Choices, rand.Reader)
	s.ESP.Setup = o.answers
	return err
}
