package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/uroot-cmds/ota/machine"
)

const growUsage = `usage: ota grow [--to VERSION|SIZE] [--from PLACE] [--yes] [--json]
       ota grow --cancel [--json]

Has the next start make this machine's slots larger, for a release that does not
fit them: the root partition gets smaller, and what is on it stays. Says first what
that takes, and asks. With a root partition of ext4 the other slot is emptied for
it: there is no way back to its system, until the next release is in.

  --to      the size, like 3G or 1536M, or the version that is offered and needs
            it; without it, what the release needs that is offered
  --from    as of ota fetch
  --cancel  takes it back, until the restart
  --yes     does not ask
`

func grow(ctx context.Context, c *call) (any, error) {
	switch {
	case c.NArg() > 0 || *c.cancel && (*c.to != "" || *c.from != ""):
		return nil, errUsage
	case *c.cancel:
		if err := c.machine.CancelGrowth(); err != nil {
			return nil, err
		}
		fmt.Fprintln(c.out, "the slots stay as they are")
		return struct{}{}, nil
	case *c.json && !*c.yes:
		return nil, fmt.Errorf("%w: it asks, and with --json nobody could see what: give --yes", errUsage)
	}
	size, version, err := wantedGrowth(*c.to)
	if err != nil {
		return nil, fmt.Errorf("%w: --to: %w", errUsage, err)
	}
	g, err := c.machine.PlanGrowth(ctx, size, version, machine.Options{From: *c.from, Tell: c.screen.event})
	c.screen.end()
	if errors.Is(err, layout.ErrLargeEnough) {
		fmt.Fprintln(c.out, plain(err.Error()))
		return struct{}{}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, line := range g.Lines() {
		fmt.Fprintln(c.out, plain(line))
	}
	if !*c.yes && !c.confirmed("Make the slots larger?") {
		return nil, errDeclined
	}
	if err := c.machine.AskGrowth(g); err != nil {
		return nil, err
	}
	fmt.Fprintln(c.out, "it is asked for: restart, and then `ota fetch` (`ota grow --cancel` takes it back)")
	return g, nil
}

// wantedGrowth reads a size, or a version; both 0 for "".
func wantedGrowth(to string) (size int64, v contract.Version, err error) {
	if to == "" {
		return 0, 0, nil
	}
	if v, err = contract.ParseVersion(to); err == nil {
		return 0, v, nil
	}
	unit := map[byte]int64{'M': 1 << 20, 'G': 1 << 30}[to[len(to)-1]]
	n, err := strconv.ParseInt(to[:len(to)-1], 10, 32)
	if err != nil || unit == 0 || n <= 0 || n > layout.MaxSlot/unit {
		return 0, 0, fmt.Errorf("%.60q is neither a version nor a size up to %dG, like 3G or 1536M", to, int64(layout.MaxSlot)>>30)
	}
	return n * unit, 0, nil
}

// showGrown says what was asked for, and what came of it.
func showGrown(w io.Writer, g *machine.Grown) {
	switch {
	case g == nil:
	case g.Request != nil:
		fmt.Fprintf(w, "asked for slots of %d MiB: the next start makes them (ota grow --cancel takes it back)\n", g.Request.SlotSize>>20)
	case g.Outcome.Done:
		fmt.Fprintf(w, "the slots were made larger, %d MiB, at %s\n", g.Outcome.SlotSize>>20, at(g.Outcome.When))
	default:
		fmt.Fprintf(w, "slots of %d MiB were asked for, and not made: %s (ota grow asks again)\n", g.Outcome.SlotSize>>20, plain(g.Outcome.Reason))
	}
}
