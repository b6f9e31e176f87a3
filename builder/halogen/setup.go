package main

import (
	"context"
	"flag"
	"fmt"

	"halogenos.internal/boot/answers"
	"halogenos.internal/builder/files"
)

const setupSummary = `usage: halogen setup --check FILE

Says whether FILE can answer the questions of a machine's first start, and what it
answers. 'halogen install --setup FILE' leaves it on the disk, and nobody is asked
then; setup.json(5) has the format. Whether an image has the language and the like
that it names, 'halogenctl setup --check' says in the running system.
`

func (c command) setup(_ context.Context, args []string) error {
	var check string
	f := flag.NewFlagSet("setup", flag.ContinueOnError)
	f.StringVar(&check, "check", "", "the `FILE` to look at")
	rest, err := c.parse(f, args, setupSummary)
	switch {
	case err != nil:
		return err
	case check == "" || len(rest) > 0:
		return c.misused(f, "want --check FILE and nothing else")
	}
	_, a, err := readAnswers(check)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%s can be taken:\n%s", check, a.Summary())
	return nil
}

// readAnswers reads a file with answers for a first start.
func readAnswers(name string) ([]byte, *answers.Answers, error) {
	text, err := files.Read(name, answers.MaxSize)
	if err != nil {
		return nil, nil, err
	}
	a, err := answers.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, a, nil
}
