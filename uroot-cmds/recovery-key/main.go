// Command recovery-key replaces this machine's recovery key. In the running system it asks
// the next boot for that.
package main

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: recovery-key [new]

Makes a new recovery key: shows it, asks for two groups of it to be typed back
from what was written down, and then removes the old one. With an empty line the
old one stays, and the new one is forgotten.

The old key opens nothing afterwards, but a copy of the root partition's first
16 MiB that somebody took before still opens with it, and gives the machine
secret: reseal --new-secret makes another.

In the running system (halogenctl recovery-key new) it only leaves a request:
the next start, opened by the TPM, does this for the person in front of it who
answers y. The old key is not needed for that, and stays until the new one is
confirmed: one that is not opens nothing. At the recovery console it needs
unlock.

Exit codes: 0 replaced, or asked for; 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal).Main() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "recovery-key", Help: help, MaxArgs: 1, Secrets: true, Run: func(_ context.Context, call *command.Call) error {
		if len(call.Args) == 1 && call.Args[0] != "new" {
			return command.ErrUsage
		}
		m, err := machine()
		if err != nil {
			return err
		}
		switch {
		case m.AtConsole():
		case len(call.Args) == 0:
			return errors.New("only the recovery console does this; halogenctl recovery-key new asks the next start for it")
		default:
			if err := m.AskForRecoveryKey(); err != nil {
				return err
			}
			fmt.Fprintln(call.Stdout, "The next start makes a new recovery key and shows it. Restart the machine while you are in front of it.")
			return nil
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		return m.RecoveryKey(t)
	}}
}
