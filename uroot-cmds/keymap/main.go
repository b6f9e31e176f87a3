// Command keymap has the keyboard of the recovery console type what is printed on it.
package main

import (
	"context"
	"errors"
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

func main() { cmd(recovery.Linux, hw.SwapKeymap).Main() }

// swap is hw.SwapKeymap.
type swap func(screen string, entries []keyboard.Entry) (restore func() error, err error)

func cmd(machine func() (*recovery.Machine, error), set swap) command.Command {
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
		if restore, err := set(hw.Screen, k.Entries()); err != nil && restore != nil {
			return errors.Join(err, restore()) // not half of one keymap and half of another
		} else if err != nil {
			return err
		}
		return m.RememberKeymap(k)
	}}
}
