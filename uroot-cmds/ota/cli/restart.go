package cli

import (
	"context"
	"fmt"
)

const restartUsage = `usage: ota restart [--auto] [--json]

Restarts the machine into a release that was fetched and waits for it. Needs
systemd-logind.

  --auto  for timers: only where Restart= in ota.conf says that the machine does so by
          itself, and nobody uses it. Those who are logged in are told, a minute
          before. Says nothing where it does not
`

func restart(ctx context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	do := c.machine.RestartNow
	if *c.auto {
		do = c.machine.RestartWhenDue
	}
	r, err := do(ctx)
	switch {
	case err != nil || !r.Due:
	case r.Version == 0:
		fmt.Fprintf(c.out, "the machine restarts to make its slots larger: %s\n", plain(r.Reason))
	default:
		fmt.Fprintf(c.out, "the machine restarts into version %s: %s\n", r.Version, plain(r.Reason))
	}
	return r, err
}
