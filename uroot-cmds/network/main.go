// Command network brings the recovery console into a wired network.
package main

import (
	"context"
	"fmt"

	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/network"
)

const help = `usage: network [INTERFACE...]

Loads the drivers of this machine's wired network devices from the system image,
and asks for an address by DHCP: on all of them, or on those that are named. For
https the system image's root certificates are used from then on. What it finds
missing it says, with the commands that set an address by hand.

Recovery console only. Exit codes: 0 there is an address, 1 there is none,
2 wrong usage.
`

func main() { cmd(network.Linux).Main() }

// maxInterfaces is more than a machine has.
const maxInterfaces = 7

func cmd(machine func(say func(format string, args ...any)) (*network.Machine, error)) command.Command {
	return command.Command{Name: "network", Help: help, MaxArgs: maxInterfaces, Run: func(ctx context.Context, c *command.Call) error {
		m, err := machine(func(format string, args ...any) { fmt.Fprintf(c.Stdout, format+"\n", args...) })
		if err != nil {
			return err
		}
		return m.Up(ctx, c.Args)
	}}
}
