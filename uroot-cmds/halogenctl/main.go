// Command halogenctl runs, in the running system, those of the recovery
// console's commands that make sense there. Their own names are too short for a
// distribution's $PATH.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/version"
)

const help = `usage: halogenctl COMMAND [ARGUMENT...]
       halogenctl --version

  slots      what is in the two slots, which starts next, and the boot journal
  verify     read a slot against its root hash
  repair     write a slot's bad blocks again, from the other slot
  eventlog   what the firmware measured, and what differs from the last good boot
  reseal     ask the next start for a new machine secret
  reset      ask the next start for a factory reset: all data is wiped
  changes    what differs from the image in /etc, and what updates conflict with

halogenctl COMMAND --help says more. Only root may run them. Updates, and the
way back from one, are ota's.

Exit codes: those of the command; 2 wrong usage.
`

// commands are those that a running system may have; changes is for it alone. The others need the root
// partition closed, or a person at a console whose keys nobody else can read; reseal and
// reset only leave a request for the next boot, which has both.
func commands() []string {
	return []string{"slots", "verify", "repair", "eventlog", "reseal", "reset", "changes"}
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, execute))
}

// execute replaces this program by the command, which is a part of it: the last
// element of the first argument says which. It is a path, so that nothing in the
// working directory is taken for it.
func execute(args []string) error {
	const self = "/proc/self/exe"
	return fmt.Errorf("run %s: %w", args[0], unix.Exec(self, append([]string{"/usr/lib/halogen/" + args[0]}, args[1:]...), os.Environ()))
}

func run(args []string, stdout, stderr io.Writer, execute func([]string) error) int {
	f := flag.NewFlagSet("halogenctl", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	asked := f.Bool("version", false, "")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, help)
		return 0
	}
	if err == nil && *asked {
		fmt.Fprint(stdout, version.Line("halogenctl"))
		return 0
	}
	if err == nil && f.NArg() == 0 {
		err = errors.New("no command")
	}
	if err == nil && !slices.Contains(commands(), f.Arg(0)) {
		err = fmt.Errorf("%q is none of its commands", f.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "halogenctl: %v\n%s", err, help)
		return 2
	}
	if err := execute(f.Args()); err != nil {
		fmt.Fprintln(stderr, "halogenctl:", err)
		return 1
	}
	return 0
}
