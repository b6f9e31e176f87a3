// Command reset wipes the root partition and keeps the slots. In the running system it asks
// the next boot for it.
package main

import (
	"context"
	"fmt"

	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: reset [--keep-home]

Factory reset: wipes the root partition, that is all data, all settings, this
machine's Secure Boot keys, and the TPM's record of them. THERE IS NO WAY BACK,
with no recovery key. The two slots stay. Asks for the machine's name to be
typed.

Afterwards clear the Secure Boot keys in the firmware's setup and start again:
the machine makes itself new, and shows a new recovery key.

  --keep-home  delete all that was changed but /home, and keep the machine's
               keys, and the accounts whose home lies under /home, with their
               passwords. Nothing is to be done in the firmware's setup. At the
               console, after "unlock", the next start does it.

In the running system (halogenctl reset) it only leaves a request: the next
start shows this and asks, once, for two minutes. Pressing Enter there, or
nothing, declines: nothing is deleted, and the machine starts as usual.

Exit codes: 0 wiped, or asked for; 1 not or not all, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal, bootinfo.Directory).Main() }

// cmd is the command; shared is what the running system shares with the boot.
func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error), shared string) command.Command {
	var keepHome bool
	return command.Command{Name: "reset", Help: help, Secrets: true, Flags: command.Bool("keep-home", &keepHome), Run: func(_ context.Context, call *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		if !m.AtConsole() {
			ask, does := m.AskForReset, "wipes all data"
			if keepHome {
				ask, does = func() error { return keephome.Ask(shared) }, "deletes all but /home"
			}
			if err := ask(); err != nil {
				return err
			}
			fmt.Fprintf(call.Stdout, "The next start asks for the machine's name, and then %s. Restart the machine while you are in front of it.\n", does)
			return nil
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		if keepHome {
			return m.ResetKeepingHome(t)
		}
		return m.Reset(t)
	}}
}
