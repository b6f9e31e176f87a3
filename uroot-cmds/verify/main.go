// Command verify reads a whole slot against its root hash.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
)

const help = `usage: verify [--json] [a|b]

Reads every block of a slot, or of both, and compares it with the root hash that
the slot's signed UKI carries. Says which block is corrupt first, if one is:
repair finds and replaces them all. Reads only.

Exit codes: 0 intact, 1 corrupt or unreadable, 2 wrong usage.
`

func main() { cmd(take).Main() }

func take() (*inventory.Inventory, error) { return inventory.Take(hw.Linux(nil, "", "")) }

// outcome is what a slot is like.
type outcome struct {
	Slot    layout.Slot `json:"slot"`
	File    string      `json:"file,omitempty"`
	Version string      `json:"version,omitempty"`
	Empty   bool        `json:"empty,omitempty"`
	Intact  bool        `json:"intact"`
	Bytes   int64       `json:"bytes,omitempty"`
	Corrupt *block      `json:"corrupt,omitempty"` // the first such block
	Error   string      `json:"error,omitempty"`
	took    time.Duration
}

// block is a verity.CorruptError.
type block struct {
	Area   string `json:"area"`
	Level  int    `json:"level"`
	Block  uint64 `json:"block"`
	Offset int64  `json:"offset"`
}

func cmd(take func() (*inventory.Inventory, error)) command.Command {
	return command.Command{Name: "verify", Help: help, MaxArgs: 1, JSON: true, Run: func(ctx context.Context, c *command.Call) error {
		slots, err := command.Slots(c.Args)
		if err != nil {
			return err
		}
		inv, err := take()
		if err != nil {
			return err
		}
		var outcomes []outcome
		var errs []error
		looked := 0
		for _, s := range slots {
			system, err := inv.In(s)
			if errors.Is(err, inventory.ErrNoContent) && len(c.Args) == 0 {
				outcomes = append(outcomes, outcome{Slot: s, Empty: true})
				continue
			}
			looked++
			o, err := look(ctx, c, inv, s, system, err)
			outcomes = append(outcomes, o)
			errs = append(errs, err)
		}
		if c.JSON {
			errs = append(errs, c.Encode(outcomes))
		} else {
			show(c, outcomes)
		}
		if looked == 0 {
			return errors.New("no slot has content to verify")
		}
		return errors.Join(errs...)
	}}
}

func look(ctx context.Context, c *command.Call, inv *inventory.Inventory, s layout.Slot, system inventory.System, err error) (outcome, error) {
	o := outcome{Slot: s, File: system.File, Version: system.Version}
	start := time.Now()
	if err == nil {
		o.Bytes = system.Contract.ImageSize
		progress := command.Progress(c, fmt.Sprintf("slot %s", s))
		if err = inv.Verify(ctx, system, func(done int64) { progress(done, o.Bytes) }); err != nil {
			err = fmt.Errorf("slot %s (%s): %w", s, system.File, err)
		}
	}
	o.took = time.Since(start)
	o.Intact = err == nil
	if corrupt, ok := errors.AsType[*verity.CorruptError](err); ok {
		o.Corrupt = (*block)(corrupt)
	}
	if err != nil {
		o.Error = err.Error()
	}
	return o, err
}

func show(c *command.Call, outcomes []outcome) {
	for _, o := range outcomes {
		switch {
		case o.Empty:
			fmt.Fprintf(c.Stdout, "slot %s: empty\n", o.Slot)
		case o.Intact:
			fmt.Fprintf(c.Stdout, "slot %s: %d MiB are what %s names (%.1f s)\n", o.Slot, o.Bytes>>20, o.File, o.took.Seconds())
		}
	}
}
