// Package command is what the small commands have in common: --help, wrong use,
// exit codes, and who may run them.
//
// It refuses to run a command for anybody but root: each of them reads or
// changes what the machine starts from.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"halogenos.internal/boot/secretmem"
)

// Exit codes.
const (
	OK     = 0
	Failed = 1
	Usage  = 2
)

// Any is a MaxArgs without a limit.
const Any = -1

// A Command is one of the commands.
type Command struct {
	Name string
	// Help is the whole text of --help; it begins with "usage: " and the name.
	Help string
	// MaxArgs is how many arguments it takes at most, behind the flags; Any number.
	MaxArgs int
	JSON    bool // it takes --json
	Yes     bool // it takes --yes
	// Secrets: what it handles is erased from the process (boot/secretmem).
	Secrets bool
	// Flags adds what else it takes; may be nil.
	Flags func(f *flag.FlagSet)
	// Run does it. ErrUsage says that the arguments are malformed.
	Run func(ctx context.Context, c *Call) error
}

// A Call is a command's run.
type Call struct {
	Args           []string
	JSON, Yes      bool
	Stdout, Stderr io.Writer
}

// ErrUsage is returned by a command that cannot understand its arguments.
var ErrUsage = errors.New("wrong usage")

// Encode writes a value as JSON.
func (c *Call) Encode(v any) error {
	e := json.NewEncoder(c.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Main runs the command as a program. It does not return.
func (c Command) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := c.Exec(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Geteuid())
	stop()
	os.Exit(code)
}

// Exec runs the command for a user and returns its exit code.
func (c Command) Exec(ctx context.Context, args []string, stdout, stderr io.Writer, user int) int {
	call := &Call{Stdout: stdout, Stderr: stderr}
	f := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	if c.JSON {
		f.BoolVar(&call.JSON, "json", false, "")
	}
	if c.Yes {
		f.BoolVar(&call.Yes, "yes", false, "")
	}
	if c.Flags != nil {
		c.Flags(f)
	}
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, c.Help)
		return OK
	}
	if err == nil && c.MaxArgs != Any && f.NArg() > c.MaxArgs {
		err = fmt.Errorf("%d arguments, at most %d are taken", f.NArg(), c.MaxArgs)
	}
	if err != nil {
		return c.wrong(stderr, err)
	}
	if user != 0 {
		fmt.Fprintf(stderr, "%s: only root may do this\n", c.Name)
		return Failed
	}
	call.Args = f.Args()
	switch err := c.run(ctx, call); {
	case errors.Is(err, ErrUsage):
		return c.wrong(stderr, err)
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", c.Name, err)
		return Failed
	}
	return OK
}

func (c Command) run(ctx context.Context, call *Call) error {
	if !c.Secrets {
		return c.Run(ctx, call)
	}
	defer secretmem.Collect()
	return secretmem.Try(func() error { return c.Run(ctx, call) })
}

func (c Command) wrong(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%s: %v\n%s", c.Name, err, c.Help)
	return Usage
}

// Bool is a Flags that adds one flag without a value.
func Bool(name string, to *bool) func(*flag.FlagSet) {
	return func(f *flag.FlagSet) {
		*to = false
		f.BoolVar(to, name, false, "")
	}
}
