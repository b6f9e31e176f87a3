// Command recovery-key replaces this machine's recovery key.
package main

import (
	"context"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: recovery-key

Makes a new recovery key: shows it, asks for two groups of it to be typed back
from what was written down, and then removes the old one. With an empty line the
old one stays, and the new one is forgotten.

The old key opens nothing afterwards, but a copy of the root partition's first
16 MiB that somebody took before still opens with it, and gives the machine
secret: reseal --new-secret makes another.

Needs unlock. Recovery console only.

Exit codes: 0 replaced, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux, terminal).Main() }

func terminal() (hw.Console, error) { return console.Here() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "recovery-key", Help: help, Secrets: true, Run: func(context.Context, *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		return m.RecoveryKey(t)
	}}
}
