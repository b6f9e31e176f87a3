// Command halogenctl runs, in the running system, those of the recovery
// console's commands that make sense there. Their own names are too short for a
// distribution's $PATH.
package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/dispatch"
)

const help = `usage: halogenctl COMMAND [ARGUMENT...]
       halogenctl --version

  slots      what is in the two slots, which starts next, and the boot journal
  verify     read a slot against its root hash
  repair     write a slot's bad blocks again, from the other slot
  eventlog   what the firmware measured, and what differs from the last good boot
  firmware   what the firmware is and holds, and what is advised
  reseal     ask the next start for a new machine secret
  reset      ask the next start for a factory reset: all data is wiped, or all
             but /home
  recovery-key  ask the next start for a new recovery key
  pin        ask the next start for a PIN beside the TPM, another one, or none
  phrase     ask the next start for another phrase, shown before each question
  language   the language of the screens before the system runs
  module-trust  ask the next start about the release's kernel modules again, or
             have it take a yes back
  changes    what differs from the image in /etc, and what updates conflict with
  boot-report  a report of this boot that the TPM signs, for 'halogen
             verify-report'
  boot-once  have the firmware start another system at the next restart
  setup      ask for language, keyboard, time zone, name, account and updates

halogenctl COMMAND --help says more. Only root may run them. Updates, and the
way back from one, are ota's.

Exit codes: those of the command; 2 wrong usage.
`

// commands are those that a running system may have; changes, boot-report, boot-once
// and setup are for it alone. language leaves a variable that says nothing secret. The others need the root
// partition closed, or a person at a console whose keys nobody else can read; reseal, reset, recovery-key, pin,
// phrase and module-trust only leave a request for the next boot, which has both.
func commands() []string {
	return []string{"slots", "verify", "repair", "eventlog", "firmware", "reseal", "reset", "recovery-key", "pin", "phrase", "language", "module-trust", "changes", "boot-report", "boot-once", "setup"}
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
	p := dispatch.Program{Name: "halogenctl", Help: help, Commands: commands()}
	if code, found := p.Find(args, stdout, stderr); !found {
		return code
	}
	if err := execute(args); err != nil {
		fmt.Fprintln(stderr, "halogenctl:", err)
		return dispatch.Failed
	}
	return dispatch.OK
}
