// Command sh is the shell of the recovery console.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"halogenos.internal/initagent/shell"
)

const help = `usage: sh [FILE [ARGUMENT...]]
       sh -c COMMAND [ARGUMENT...]

Runs what is typed, a file, or a command, in the language of POSIX shells and
bash, as far as recovery needs it. Typed lines are edited by the terminal:
Backspace, Ctrl-U and Ctrl-C work, and there is no history. Only exit, or Ctrl-D
on an empty line, leaves it.

Exit codes: 0 left by exit; that of the file or command; 2 wrong usage.
`

func main() {
	// Caught, and not ignored: programs must get it.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, interrupted))
}

func run(args []string, in *os.File, stdout, stderr io.Writer, interrupted <-chan os.Signal) int {
	f := flag.NewFlagSet("sh", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	command := f.String("c", "", "")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, help)
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "sh: %v\n%s", err, help)
		return 2
	}
	s, err := shell.New(in, stdout, stderr, interrupted)
	switch {
	case err != nil:
	case *command != "":
		err = s.Script(strings.NewReader(*command), "", f.Args()...)
	case f.NArg() > 0:
		err = file(s, f.Args())
	default:
		err = s.Interact(in)
	}
	code := shell.Status(err)
	if err != nil && code == 1 && err.Error() != "exit status 1" {
		fmt.Fprintln(stderr, "sh:", err)
	}
	return code
}

func file(s *shell.Shell, args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return s.Script(f, args[0], args[1:]...)
}
