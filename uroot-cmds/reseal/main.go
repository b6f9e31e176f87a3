// Command reseal lets the TPM open the root partition again. In the running system it
// asks the next boot for a new machine secret.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: reseal [--new-secret [--new-keys]]

Lets the TPM open the root partition again, for this machine as it is now: after
a firmware update, with new hardware, with a TPM that was cleared. Shows what
has changed since the last boot that opened by itself, and asks. What cannot be
explained from the firmware's event log is refused, and so is a machine whose
firmware does not enforce Secure Boot.

Say yes only if you know what changed: anyone who changed it can from then on
start this machine and have it open its data.

With --new-secret it also makes a new machine secret, for when the old one may
have been read, and asks for the recovery key once more. What the old one opened
opens no more, but for copies of the disk's header that were taken before. The
recovery key stays the same.

With --new-keys it then makes new Secure Boot keys, signs with them what this
machine starts, and gives them to the firmware in place of the old ones. After a
power cut the next start goes on with that, and so does the same command.

Needs unlock. In the running system (halogenctl reseal --new-secret) it only
leaves a request: the next start asks for the recovery key, and pressing Enter
there declines.

Exit codes: 0 accepted, or asked for; 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal, bootinfo.Linux().Note).Main() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error), note func(journal.Entry) error) command.Command {
	fresh, keys := false, false
	flags := func(f *flag.FlagSet) {
		command.Bool("new-secret", &fresh)(f)
		command.Bool("new-keys", &keys)(f)
	}
	return command.Command{Name: "reseal", Help: help, Secrets: true, Flags: flags, Run: func(_ context.Context, call *command.Call) error {
		if keys && !fresh {
			return command.ErrUsage
		}
		m, err := machine()
		if err != nil {
			return err
		}
		switch {
		case m.AtConsole():
		case !fresh:
			return errors.New("only the recovery console does this; --new-secret works here, too")
		default:
			if err := m.AskForSecret(keys); err != nil {
				return err
			}
			fmt.Fprintln(call.Stdout, "The next start asks for the recovery key. Restart the machine while you are in front of it.")
			return nil
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		if fresh {
			return m.NewSecret(t, keys)
		}
		if err := m.Reseal(t); err != nil {
			return err
		}
		e := journal.Entry{Time: time.Now(), Kind: journal.Accepted, Reason: "somebody accepted the machine as it is, at the recovery console"}
		if err := note(e); err != nil {
			fmt.Fprintf(call.Stderr, "reseal: the boot journal does not tell of it: %v\n", err)
		}
		return nil
	}}
}
