// Command language says in which language the screens before the system are, and has it be another one.
package main

import (
	"context"
	"fmt"
	"strings"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: language [NAME]

The language in which this machine asks and tells before its system runs: for a
PIN, the recovery key or a confirmation, and at the recovery console. NAME is a
code such as en or de. Without it the language is shown, and those there are.

It counts from the next start on; at the recovery console at once. What is typed
is the same in every language, and English answers always count. The log stays
English. The language of the system itself is another matter (setup, localectl).

Exit codes: 0 done, 1 failed, 2 wrong usage.
`

func main() { cmd(recovery.Linux).Main() }

func cmd(machine func() (*recovery.Machine, error)) command.Command {
	return command.Command{Name: "language", Help: help, MaxArgs: 1, Run: func(_ context.Context, c *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		if len(c.Args) == 0 {
			return show(m, c)
		}
		l, err := words.Find(strings.ToLower(c.Args[0]))
		if err != nil {
			return err
		}
		return m.RememberLanguage(l)
	}}
}

func show(m *recovery.Machine, c *command.Call) error {
	l, chosen, err := m.ScreenLanguage()
	whose := "the image's"
	if chosen {
		whose = "chosen for this machine"
	}
	fmt.Fprintf(c.Stdout, "%s (%s); there are %s\n", l.Code(), whose, strings.Join(words.Codes(), ", "))
	if err != nil {
		return fmt.Errorf("what the firmware's variable %s has is no language, and is passed over: %w", words.Variable, err)
	}
	return nil
}
