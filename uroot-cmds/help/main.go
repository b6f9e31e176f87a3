// Command help tells a person at the recovery console which command cures what.
package main

import (
	"context"
	"fmt"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: help

Lists the commands of the recovery console by what went wrong. Each command's
--help says more.

Exit codes: 0 shown, 2 wrong usage.
`

func main() { cmd(language).Main() }

// language is that of the console; a machine that cannot say it has the list in English.
func language() words.Language {
	m, err := recovery.Linux()
	if err != nil {
		return words.English
	}
	l, _, _ := m.ScreenLanguage()
	return l
}

func cmd(language func() words.Language) command.Command {
	return command.Command{Name: "help", Help: help, Run: func(_ context.Context, c *command.Call) error {
		_, err := fmt.Fprint(c.Stdout, language().Help())
		return err
	}}
}
