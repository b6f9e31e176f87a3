package cli

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/worker"
)

const reportUsage = `usage: ota report [--json]
       ota report --on | --off | --send [--json]

Shows what this machine tells its distributor of the last update, where its owner
allows it: which version was tried, from which one, on which channel, what became of
it, the kind of failure, the machine's make, and the day. That is all of it, and nothing
in it names the machine or its owner. The server sees the address that it comes from, as it does
when a release is fetched.

  --on    allow it, for the server that reports go to now: ota fetch --auto, which a
          timer runs, then tells of each update once
  --off   allow it no more
  --send  tell now

Where reports go is set by ReportTo= in ota.conf. Where that names another server later,
as after an update, it is told nothing before --on is said again.
`

func reportOf(ctx context.Context, c *call) (any, error) {
	chosen := 0
	for _, flag := range []*bool{c.on, c.off, c.send} {
		if *flag {
			chosen++
		}
	}
	if c.NArg() > 0 || chosen > 1 {
		return nil, errUsage
	}
	if *c.on || *c.off {
		if err := c.machine.AllowReports(*c.on); err != nil {
			return nil, err
		}
	}
	show := c.machine.Telling
	if *c.send {
		show = func() (*machine.Telling, error) { return c.machine.SendReport(ctx, c.screen.event) }
	}
	t, err := show()
	if err != nil {
		return nil, err
	}
	return t, c.showReport(t)
}

// showReport says what is told, word for word, and whether it is.
func (c *call) showReport(t *machine.Telling) error {
	switch {
	case t.Report == nil:
		fmt.Fprintln(c.out, "no update has ended yet that could be told of")
	default:
		text, err := t.Report.Encode()
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s", text)
	}
	switch {
	case t.To == "":
		fmt.Fprintln(c.out, "nobody is told: no server takes reports (ReportTo= in ota.conf)")
	case t.Told:
		fmt.Fprintf(c.out, "%s has been told\n", plain(t.To))
	case t.Allowed:
		fmt.Fprintf(c.out, "%s is told when the timer looks for an update\n", plain(t.To))
	case t.AllowedBefore != "":
		fmt.Fprintf(c.out, "nobody is told: %s was allowed, and reports would go to %s now: `ota report --on` allows that\n", plain(t.AllowedBefore), plain(t.To))
	default:
		fmt.Fprintf(c.out, "nobody is told: `ota report --on` allows to tell %s\n", plain(t.To))
	}
	return nil
}

// tellOnce tells of the last update where the owner allows it. What comes of it changes
// nothing about the fetch before it.
func tellOnce(ctx context.Context, c *call) {
	t, err := c.machine.Telling()
	if err != nil || t.Report == nil || t.Told || !t.Allowed || t.To == "" {
		return
	}
	if _, err := c.machine.SendReport(ctx, c.screen.event); err != nil && !errors.Is(err, context.Canceled) {
		c.screen.event(worker.Event{Note: "the distributor was not told of the last update: " + err.Error()})
	}
}
