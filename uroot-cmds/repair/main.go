// Command repair makes a damaged slot whole from the other one.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/repair"
)

const help = `usage: repair [--json] [a|b]

Finds every block of a slot, or of both, that is not what the root hash in the
slot's signed UKI vouches for, and writes it again from a block with the right
hash: from the other slot, wherever it lies there, or from elsewhere in the same
one. Hash blocks are computed, or taken from the other slot. Verifies the whole
slot afterwards.

It asks nothing, since it cannot do harm: only a block that is proven right is
written, and only over one that is wrong. What nothing on this disk holds stays
lost; fetch or install the release again.

Exit codes: 0 whole, 1 not whole, 2 wrong usage.
`

func main() { cmd(take, bootinfo.Linux()).Main() }

func take() (*inventory.Inventory, error) { return inventory.Take(hw.Linux(nil, "", "")) }

// outcome is what became of a slot.
type outcome struct {
	Slot    layout.Slot   `json:"slot"`
	Version string        `json:"version,omitempty"`
	Report  repair.Report `json:"written"`
	Whole   bool          `json:"whole"`
	Error   string        `json:"error,omitempty"`
}

func cmd(take func() (*inventory.Inventory, error), place bootinfo.Place) command.Command {
	return command.Command{Name: "repair", Help: help, MaxArgs: 1, JSON: true, Run: func(ctx context.Context, c *command.Call) error {
		slots, err := command.Slots(c.Args)
		if err != nil {
			return err
		}
		release, err := place.Alone()
		if err != nil {
			return err
		}
		defer release()
		inv, err := take()
		if err != nil {
			return err
		}
		var outcomes []outcome
		var errs []error
		for _, s := range slots {
			system, err := inv.In(s)
			if errors.Is(err, inventory.ErrNoContent) && len(c.Args) == 0 {
				continue
			}
			o := outcome{Slot: s, Version: system.Version}
			if err == nil {
				o.Report, err = repair.System(ctx, inv, system, command.Progress(c, fmt.Sprintf("slot %s", s)))
			}
			if o.Report.Data+o.Report.Hash > 0 {
				if err := place.Note(entry(system, o.Report)); err != nil {
					errs = append(errs, err)
				}
			}
			if o.Whole = err == nil; err != nil {
				o.Error = err.Error()
				errs = append(errs, err)
			}
			outcomes = append(outcomes, o)
		}
		if len(outcomes) == 0 {
			return errors.New("no slot has content to repair")
		}
		if c.JSON {
			errs = append(errs, c.Encode(outcomes))
		} else {
			show(c, outcomes)
		}
		return errors.Join(errs...)
	}}
}

func entry(s inventory.System, r repair.Report) journal.Entry {
	e := journal.Entry{Time: time.Now(), Kind: journal.Repaired, Slot: s.Slot, Reason: fmt.Sprintf("%d data blocks and %d hash blocks were damaged", r.Data, r.Hash)}
	if s.Contract != nil {
		e.Version = s.Contract.Version
	}
	return e
}

func show(c *command.Call, outcomes []outcome) {
	for _, o := range outcomes {
		switch {
		case !o.Whole:
			fmt.Fprintf(c.Stdout, "slot %s: not whole; %d data blocks and %d hash blocks written\n", o.Slot, o.Report.Data, o.Report.Hash)
		case o.Report.Data+o.Report.Hash == 0:
			fmt.Fprintf(c.Stdout, "slot %s: nothing to repair\n", o.Slot)
		default:
			fmt.Fprintf(c.Stdout, "slot %s: whole again; %d data blocks and %d hash blocks written\n", o.Slot, o.Report.Data, o.Report.Hash)
		}
	}
}
