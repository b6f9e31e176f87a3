// Command reset wipes the root partition and keeps the slots.
package main

import (
	"context"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: reset

Factory reset: wipes the root partition, that is all data, all settings, this
machine's Secure Boot keys, and the TPM's record of them. THERE IS NO WAY BACK,
with no recovery key. The two slots stay. Asks for the machine's name to be
typed.

Afterwards clear the Secure Boot keys in the firmware's setup and start again:
the machine makes itself new, and shows a new recovery key.

Recovery console only. Exit codes: 0 wiped, 1 not or not all, 2 wrong usage.
`

func main() { cmd(recovery.Linux, terminal).Main() }

func terminal() (hw.Console, error) { return console.Here() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "reset", Help: help, Secrets: true, Run: func(context.Context, *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		return m.Reset(t)
	}}
}
