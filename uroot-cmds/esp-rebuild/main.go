// Command esp-rebuild makes the ESP again from the root partition.
package main

import (
	"context"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: esp-rebuild

Makes a new file system on the EFI system partition, with the boot manager and
the UKIs that the root partition keeps copies of. For an ESP that is damaged;
the next boot mends one that can be read without this. Asks first: everything
else on the ESP is lost, and from the first write to the last the
machine has nothing to start from. Copies that this machine did not sign are
refused.

Needs unlock. Recovery console only. Exit codes: 0 made, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal).Main() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "esp-rebuild", Help: help, Secrets: true, Run: func(context.Context, *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		return m.RebuildESP(t)
	}}
}
