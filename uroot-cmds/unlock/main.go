// Command unlock opens the root partition at the recovery console.
package main

import (
	"context"
	"fmt"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
)

const help = `usage: unlock

Asks for this machine's recovery key, opens the root partition with it, and
mounts it at /run/state. A volume that this machine did not make is refused.
What was opened stays open for the commands that need it (reseal, enroll,
recovery-key, esp-rebuild) until lock or exit. Wrong keys cost nothing but time.

Recovery console only. Exit codes: 0 open, 1 not open, 2 wrong usage.
`

func main() { cmd(recovery.Linux, recovery.Terminal).Main() }

func cmd(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
	return command.Command{Name: "unlock", Help: help, Secrets: true, Run: func(_ context.Context, c *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		t, err := terminal()
		if err != nil {
			return err
		}
		defer t.Close()
		if err := m.Unlock(t); err != nil {
			return err
		}
		fmt.Fprint(c.Stdout, t.Language().Say(words.UnlockDone, rootpart.Directory))
		return nil
	}}
}
