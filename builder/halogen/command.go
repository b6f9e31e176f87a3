package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"halogenos.internal/boot/dispatch"
	"halogenos.internal/boot/words"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// command is the program with what it has of its surroundings.
type command struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	executable     func() (string, error)
	speaks         words.Language // what a person who installs reads
}

// errUsage marks a command line that is malformed; what is wrong with it has
// been said already.
var errUsage = errors.New("usage")

const usage = `usage: halogen COMMAND [OPTION]...

Commands:
  build     make a release out of a root file system
  run       run a machine in QEMU
  release   publish a release on a web server, or check one
  reports   say how releases fare, by what machines have told
  install   put a release on a disk
  setup     check the answers for a machine's first start
  keys      make a distributor's secret keys, and check how they are kept
  inspect   show what is in a UKI, a disk, a system image or a release.json
  diff      say in what two of these differ
  hardware-report
            write down what disks and devices this machine has
  verify-report
            judge a machine's proof of which release it has started
  certify   find out that the key of such proofs is a certified TPM's
  help      show this

'halogen COMMAND --help' shows a command's options, and 'halogen --version' the version.
Exit codes: 0 done, 1 failed, 2 wrong usage.
`

// commands are all of them. man is for the build, and in no list.
func (c command) commands() map[string]func(context.Context, []string) error {
	return map[string]func(context.Context, []string) error{
		"build":           c.build,
		"inspect":         c.inspect,
		"keys":            c.keys,
		"diff":            c.diff,
		"install":         c.install,
		"setup":           c.setup,
		"release":         c.release,
		"reports":         c.reports,
		"run":             c.machine,
		"hardware-report": c.hardwareReport,
		"verify-report":   c.verifyReport,
		"certify":         c.certify,
		"man":             c.man,
	}
}

// run executes one command line and returns the exit code.
func (c command) run(args []string) int {
	all := c.commands()
	p := dispatch.Program{Name: "halogen", Help: usage, Commands: slices.Collect(maps.Keys(all))}
	if code, found := p.Find(args, c.stdout, c.stderr); !found {
		return code
	}
	name := args[0]
	// A build that is interrupted takes its working directory away.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := all[name](ctx, args[1:]); {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintf(c.stderr, "halogen %s: interrupted: %s\n", name, interrupted(name))
		return exitFailure
	default:
		fmt.Fprintf(c.stderr, "halogen %s: %v%s\n", name, err, cure(err))
		return exitFailure
	}
}

// interrupted says what a command has left where somebody ended it, and what to do.
func interrupted(name string) string {
	switch name {
	case "build":
		return "what was half made is removed, --out has nothing of it: run it again"
	case "release":
		return "machines see the server as it was, or with the whole change: run it again"
	case "install":
		return "a disk that it was writing to may start nothing now: run it again, or restore the disk"
	}
	return "run it again"
}

// parse reads the options of a command and returns its arguments, which may
// stand before or behind them. Help goes to the standard output, faults to the
// standard error.
func (c command) parse(f *flag.FlagSet, args []string, summary string) ([]string, error) {
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	var rest []string
	for {
		err := f.Parse(args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			c.help(f, summary)
			return nil, err
		case err != nil:
			return nil, c.misused(f, "%v", err)
		case f.NArg() == 0:
			return rest, nil
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
}

func (c command) help(f *flag.FlagSet, summary string) {
	fmt.Fprint(c.stdout, summary, "\nOptions:\n")
	f.VisitAll(func(o *flag.Flag) {
		value, text := flag.UnquoteUsage(o)
		fmt.Fprintf(c.stdout, "  --%s", o.Name)
		if value != "" {
			fmt.Fprintf(c.stdout, " %s", value)
		}
		fmt.Fprintf(c.stdout, "\n        %s", text)
		if o.DefValue != "" && o.DefValue != "false" {
			fmt.Fprintf(c.stdout, " (default %s)", o.DefValue)
		}
		fmt.Fprintln(c.stdout)
	})
}

// misused says what is wrong with a command line.
func (c command) misused(f *flag.FlagSet, format string, args ...any) error {
	fmt.Fprintf(c.stderr, "halogen %s: %s; see 'halogen %s --help'\n", f.Name(), fmt.Sprintf(format, args...), f.Name())
	return errUsage
}
