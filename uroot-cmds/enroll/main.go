// Command enroll gives the firmware this machine's Secure Boot keys again.
package main

import (
	"context"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: enroll

Gives the firmware this machine's own Secure Boot keys again, after it has lost
them (a firmware reset, an empty battery). The firmware must be in Setup Mode:
its setup calls it clearing or resetting the Secure Boot keys. Shows what it is
going to write, and asks. The boot manager and the systems on the ESP that are
this machine's own are signed first, all else is left alone and named, and the
Platform Key, which makes it all count, is written last and only when everything
else reads back right.

Needs unlock. Recovery console only.

Exit codes: 0 enrolled, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal).Main() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "enroll", Help: help, Secrets: true, Run: func(context.Context, *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		return m.Enroll(t)
	}}
}
