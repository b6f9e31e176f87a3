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
	"halogenos.internal/boot/words"
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

// askSetup asks what the first start would, and returns the file with the answers; nil leaves
// all of it for the first start.
func askSetup(t questions.Terminal, c *questions.Choices, l words.Language, random io.Reader) ([]byte, error) {
	if c.Accounts {
		t.Say(l.Text(words.AskTypedHere))
	}
	p := &questions.Person{Terminal: t, Choices: c, Language: l, Leaves: true}
	a, err := p.Ask(nil)
	if errors.Is(err, questions.ErrLater) {
		t.Say(l.Text(words.AskLater))
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
	o.answers, err = askSetup(&lines{ctx, os.Stdin, c.stderr}, s.Choices, c.speaks, rand.Reader)
	s.ESP.Setup = o.answers
	return err
}
