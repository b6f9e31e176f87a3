// Command slots shows what is in the machine's two slots, which of them starts
// next, and why the last boots went as they did.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
)

const help = `usage: slots [--json] [--all]

Shows the systems on this machine's EFI system partition in the order in which
the boot manager takes them, the slot that holds each one's content, and what
keeps it from starting; how large the slots are; why this boot chose as it did;
and the end of the boot journal (with --all: all of it). At the recovery console
the journal can be read after unlock. Reads only.

Exit codes: 0 shown, 1 failed, 2 wrong usage.
`

func main() { cmd(take, bootinfo.Linux()).Main() }

func take() (*inventory.Inventory, error) { return inventory.Take(hw.Linux(nil, "", "")) }

// shown is how many entries of the journal are, without --all.
const shown = 12

// output is what --json gives.
type output struct {
	*inventory.Inventory
	Boot    *bootinfo.Report `json:"boot,omitempty"`
	Journal []journal.Entry  `json:"journal"`
}

func cmd(take func() (*inventory.Inventory, error), place bootinfo.Place) command.Command {
	var all bool
	return command.Command{
		Name: "slots", Help: help, JSON: true, Flags: command.Bool("all", &all),
		Run: func(_ context.Context, c *command.Call) error {
			inv, err := take()
			if err != nil {
				return err
			}
			boot, err := place.Boot()
			if err != nil {
				fmt.Fprintf(c.Stderr, "slots: %v\n", err)
			}
			entries, jerr := place.Journal()
			hidden := 0
			if !all && len(entries) > shown {
				hidden = len(entries) - shown
				entries = entries[hidden:]
			}
			if c.JSON {
				if jerr != nil && !errors.Is(jerr, bootinfo.ErrClosed) {
					return jerr
				}
				return c.Encode(output{inv, boot, entries})
			}
			showSystems(c.Stdout, inv)
			showBoot(c.Stdout, boot)
			showJournal(c.Stdout, entries, hidden, jerr)
			return nil
		},
	}
}

func showSystems(w io.Writer, inv *inventory.Inventory) {
	fmt.Fprintf(w, "disk %s\n", inv.Disk)
	if len(inv.Systems) == 0 {
		fmt.Fprintln(w, "the EFI system partition has no system on it")
	}
	used := map[layout.Slot]bool{}
	for i, s := range inv.Systems {
		mark := " "
		if i == 0 {
			mark = "*"
		}
		fmt.Fprintf(w, "%s slot %-5s version %-12s epoch %-3d %s (%s)\n", mark, s.Slot, s.Version, s.Epoch, s.State, s.File)
		if s.Problem != "" {
			fmt.Fprintf(w, "    %s\n", s.Problem)
		}
		used[s.Slot] = true
	}
	for _, s := range layout.Slots {
		if !used[s] {
			fmt.Fprintf(w, "  slot %-5s empty\n", s)
		}
	}
	fmt.Fprintln(w, "* starts next")
	for _, r := range inv.Slots {
		switch {
		case r.Problem != "":
			fmt.Fprintf(w, "slot %s: %s\n", r.Slot, r.Problem)
		default:
			fmt.Fprintf(w, "slot %s has %d MiB for a system image (%s)\n", r.Slot, r.Size>>20, strings.Join(r.Partitions, " and "))
		}
	}
}

func showBoot(w io.Writer, boot *bootinfo.Report) {
	if boot == nil {
		return
	}
	trial := ""
	if boot.Trial {
		trial = ", on trial"
	}
	fmt.Fprintf(w, "\nthis boot: version %s from slot %s%s\n", boot.Version, boot.Slot, trial)
	switch {
	case boot.Stopped:
		fmt.Fprintf(w, "  stopped: %s\n", strings.ReplaceAll(boot.Reason, "\n", "\n    "))
	case boot.Reason != "":
		fmt.Fprintf(w, "  because %s\n", boot.Reason)
	}
	if boot.Processor != nil {
		fmt.Fprintf(w, "  on %s\n", boot.Processor)
	}
	for _, s := range boot.Steps {
		switch {
		case s.Error != "":
			fmt.Fprintf(w, "  %-14s FAILED: %s\n", s.Step, strings.ReplaceAll(s.Error, "\n", "\n    "))
		case s.Reason != "":
			fmt.Fprintf(w, "  %-14s %s\n", s.Step, s.Reason)
		}
	}
}

func showJournal(w io.Writer, entries []journal.Entry, hidden int, err error) {
	switch {
	case errors.Is(err, bootinfo.ErrClosed):
		fmt.Fprintf(w, "\n%v (unlock opens it)\n", err)
		return
	case err != nil:
		fmt.Fprintf(w, "\nthe boot journal cannot be read: %v\n", err)
	case len(entries) == 0:
		fmt.Fprintln(w, "\nthe boot journal is empty")
		return
	}
	fmt.Fprintln(w, "\nboot journal:")
	if hidden > 0 {
		fmt.Fprintf(w, "  (%d older ones: --all)\n", hidden)
	}
	for _, e := range entries {
		fmt.Fprintf(w, "  %s\n", e)
	}
}
