// Command module-trust asks the next boot to ask about the release's kernel modules again, or
// takes back what was agreed to.
package main

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: module-trust ask|no

A release may have kernel modules that are signed by a key which is not built
into its kernel (ModuleTrust=db). They load once the firmware's db has the
certificate of that key, which a start asks for once. Anything that the key
signs can then run in the kernel, and the firmware starts programs that it has
signed.

  ask  leave a request: a start asks about the running release's certificate
       again, after a no or where nobody answered
  no   leave a request: a start takes a yes back, and db loses the certificate.
       It asks nobody

Restart the machine then. A release that is on trial does neither.

Exit codes: 0 asked for, 1 not, 2 wrong usage.
`

func main() { cmd(recovery.Linux).Main() }

func cmd(machine func() (*recovery.Machine, error)) command.Command {
	return command.Command{Name: "module-trust", Help: help, MaxArgs: 1, Run: func(_ context.Context, call *command.Call) error {
		if len(call.Args) != 1 || call.Args[0] != moduletrust.WishAsk && call.Args[0] != moduletrust.WishNo {
			return command.ErrUsage
		}
		m, err := machine()
		if err != nil {
			return err
		}
		if m.AtConsole() {
			return errors.New("only the running system does this (halogenctl module-trust): a start that the TPM opens has the keys that change db")
		}
		if err := m.AskForModules(call.Args[0]); err != nil {
			return err
		}
		said := "The next start asks about the release's kernel modules. Restart the machine while you are in front of it."
		if call.Args[0] == moduletrust.WishNo {
			said = "The next start takes the certificate of the release's kernel modules out of the firmware's db. They do not load then."
		}
		fmt.Fprintln(call.Stdout, said)
		return nil
	}}
}
