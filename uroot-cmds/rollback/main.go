// Command rollback makes the other system the one that starts next.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: rollback [--yes] [--json]

Gives up the system that would start next, so that the other one does: takes its
tries away, as a failed trial does. Reads the other slot to its last block
first, and refuses when that one would not start. Asks, unless given --yes. Data
is not touched; an older system has to cope with what the newer one has written.

The other system has its own /etc: users made since have no account, their files
stay, and the next useradd may give their number to somebody else; passwords
changed and users deleted since are as before.

The system that was given up stays where it is until an update replaces it, with
what was changed in its /etc, and is not started again by itself.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
`

func main() {
	cmd(machine{recovery.Linux, recovery.Terminal, bootinfo.Linux().Note}).Main()
}

type machine struct {
	take     func() (*recovery.Machine, error)
	terminal func() (hw.Console, error)
	note     func(journal.Entry) error
}

var errRefused = errors.New("nothing was changed")

func cmd(m machine) command.Command {
	return command.Command{Name: "rollback", Help: help, Yes: true, JSON: true, Run: func(ctx context.Context, c *command.Call) error {
		r, err := m.take()
		if err != nil {
			return err
		}
		inv, err := inventory.Take(r.Machine)
		if err != nil {
			return err
		}
		change, err := r.PlanRollback(inv)
		if err != nil {
			return err
		}
		if !c.Yes {
			if err := m.ask(change); err != nil {
				return err
			}
		}
		progress := command.Progress(c, "reading slot "+change.To.Slot.String())
		if err := r.Rollback(ctx, inv, change, func(done int64) { progress(done, change.To.Contract.ImageSize) }); err != nil {
			return err
		}
		e := journal.Entry{Time: time.Now(), Kind: journal.Rollback, Slot: change.From.Slot, Reason: "given up by hand for version " + change.To.Version}
		if change.From.Contract != nil {
			e.Version = change.From.Contract.Version
		}
		if err := m.note(e); err != nil {
			fmt.Fprintf(c.Stderr, "rollback: %v\n", err)
		}
		if c.JSON {
			return c.Encode(change)
		}
		fmt.Fprintf(c.Stdout, "Version %s starts next, from slot %s. Restart the machine.\n", change.To.Version, change.To.Slot)
		if to := change.To.Contract; to != nil && to.RootFileSystem == "btrfs" {
			fmt.Fprint(c.Stdout, "If `ota rollback --state` has asked for it, directories go back at that start; after `unlock`, `ota rollback --state --cancel` has them stay.\n")
		}
		return nil
	}}
}

func (m machine) ask(c recovery.Change) error {
	t, err := m.terminal()
	if err != nil {
		return err
	}
	defer t.Close()
	yes, err := hw.AskYes(t, fmt.Sprintf("Give up %s (slot %s, %s) and start version %s (slot %s, %s) from now on?",
		c.From.File, c.From.Slot, c.From.State, c.To.Version, c.To.Slot, c.To.State), 0)
	if err == nil && !yes {
		err = errRefused
	}
	return err
}
