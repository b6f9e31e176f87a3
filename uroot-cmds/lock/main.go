// Command lock closes the root partition that unlock has opened.
package main

import (
	"context"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: lock

Unmounts the root partition, closes it, and forgets the keys that unlock has
kept. One that is not open is fine.

Recovery console only. Exit codes: 0 closed, 1 failed, 2 wrong usage.
`

func main() { cmd(recovery.Linux).Main() }

func cmd(machine func() (*recovery.Machine, error)) command.Command {
	return command.Command{Name: "lock", Help: help, Run: func(context.Context, *command.Call) error {
		m, err := machine()
		if err != nil {
			return err
		}
		return m.Lock()
	}}
}
