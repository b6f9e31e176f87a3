// Command phrase asks the next boot for another phrase.
package main

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: phrase new

Four words that this machine shows before it asks for a PIN, the recovery key
or a confirmation at its start. The TPM gives them to this machine's own systems
alone: other words, or none, mean that something else asks, or that firmware or
Secure Boot keys are not what they were. It says nothing of the disk.

  new  leave a request: the next start that the TPM opens makes another phrase,
       shows it, and asks whether it counts. Until then the one before does.

Restart the machine while you are in front of it. Who presses Enter there
declines, and nothing is changed. Use it when somebody else has seen the phrase.

Exit codes: 0 asked for, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux).Main() }

func cmd(machine func() (*recovery.Machine, error)) command.Command {
	return command.Command{Name: "phrase", Help: help, MaxArgs: 1, Run: func(_ context.Context, call *command.Call) error {
		if len(call.Args) != 1 || call.Args[0] != "new" {
			return command.ErrUsage
		}
		m, err := machine()
		if err != nil {
			return err
		}
		if m.AtConsole() {
			return errors.New("only the running system does this (halogenctl phrase): the TPM gives the phrase to a start alone")
		}
		if err := m.AskForPhrase(); err != nil {
			return err
		}
		fmt.Fprintln(call.Stdout, "The next start makes a new phrase and shows it. Restart the machine while you are in front of it.")
		return nil
	}}
}
