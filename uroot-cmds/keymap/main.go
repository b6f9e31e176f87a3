// Command keymap has the keyboard of the recovery console type what is printed on it.
package main

import (
	"context"
	"fmt"
	"strings"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: keymap [NAME]

Says what is printed on this machine's keyboard: from then on its keys type that
here, and at the starts to come, until another keymap is named. 'keymap us' is
how a machine starts that was told nothing. Without a name it lists all.

A recovery key can be typed on any keyboard as it is. Dead keys type their
accent. A keyboard at the other end of a serial line is that machine's matter.

Recovery console only. Exit codes: 0 done, 1 failed, 2 wrong usage.
`

func main() { cmd(recovery.Linux, hw.SetKeymap).Main() }

func cmd(machine func() (*recovery.Machine, error), set func(string, []keyboard.Entry) error) command.Command {
	return command.Command{Name: "keymap", Help: help, MaxArgs: 1, Run: func(_ context.Context, c *command.Call) error {
		if len(c.Args) == 0 {
			_, err := fmt.Fprintln(c.Stdout, strings.Join(keyboard.Keymaps(), " "))
			return err
		}
		k, err := keyboard.FindKeymap(c.Args[0])
		if err != nil {
			return err
		}
		m, err := machine()
		if err != nil {
			return err
		}
		if err := set(hw.Screen, k.Entries()); err != nil {
			return err
		}
		return m.RememberKeymap(k)
	}}
}
