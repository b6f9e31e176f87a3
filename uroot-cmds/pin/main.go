// Command pin asks the next boot for a PIN beside the TPM, for another one, or for none.
package main

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: pin set|change|remove

A PIN or passphrase beside the TPM: neither of them opens this machine's data
alone. It is asked for at each start, before the system; after some wrong ones
the TPM takes none for a while.

  set     leave a request: the next start asks for the recovery key, and then
          for the PIN, twice. Nothing is changed before both are the same.
  change  the same, for another PIN
  remove  likewise: the next start asks for the PIN and for the recovery key,
          and the machine then starts by itself again

Restart the machine while you are in front of it. Anyone who presses Enter there
declines, and nothing is changed. Each makes a new machine secret, so that no
older copy of the disk's header opens by the TPM; the recovery key stays. A TPM
without room for the record of what may start could not shut such a copy out:
there no PIN is set.

Who has forgotten the PIN types one letter alone where it is asked for, then the
recovery key, and sets another one.

Exit codes: 0 asked for, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux).Main() }

func cmd(machine func() (*recovery.Machine, error)) command.Command {
	return command.Command{Name: "pin", Help: help, MaxArgs: 1, Run: func(_ context.Context, call *command.Call) error {
		if len(call.Args) != 1 {
			return command.ErrUsage
		}
		wish, ok := map[string]nextboot.PIN{"set": nextboot.SetPIN, "change": nextboot.SetPIN, "remove": nextboot.RemovePIN}[call.Args[0]]
		if !ok {
			return command.ErrUsage
		}
		m, err := machine()
		if err != nil {
			return err
		}
		if m.AtConsole() {
			return errors.New("only the running system does this (halogenctl pin): a PIN is set while the TPM has opened the machine")
		}
		if err := m.AskForPIN(wish); err != nil {
			return err
		}
		fmt.Fprintln(call.Stdout, "The next start asks for the recovery key. Restart the machine while you are in front of it.")
		return nil
	}}
}
