// Command verify reads a whole slot against its root hash.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/inventory"
)

const usage = `usage: verify [a|b]

Reads every block of a slot, or of both, and compares it with the root hash that
the slot's signed UKI carries. Says which block is corrupt, if one is. Reads
only; needs root. Exit codes: 0 intact, 1 corrupt or unreadable, 2 wrong usage.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, func() (*inventory.Inventory, error) { return inventory.Take(inventory.Linux()) })
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer, take func() (*inventory.Inventory, error)) int {
	f := flag.NewFlagSet("verify", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	var wanted layout.Slot
	if err == nil && f.NArg() == 1 {
		err = wanted.UnmarshalText([]byte(f.Arg(0)))
	}
	if err != nil || f.NArg() > 1 || f.NArg() == 1 && !wanted.Valid() {
		fmt.Fprint(stderr, usage)
		return 2
	}
	inv, err := take()
	if err != nil {
		fmt.Fprintln(stderr, "verify:", err)
		return 1
	}
	code, looked := 0, 0
	for _, s := range layout.Slots {
		if wanted.Valid() && s != wanted {
			continue
		}
		system, err := inv.In(s)
		if errors.Is(err, inventory.ErrNoContent) && !wanted.Valid() {
			fmt.Fprintf(stdout, "slot %s: empty\n", s)
			continue
		}
		looked++
		if err == nil {
			err = verify(ctx, stdout, inv, system)
		}
		if err != nil {
			fmt.Fprintf(stderr, "verify: %v\n", err)
			code = 1
		}
	}
	if looked == 0 {
		fmt.Fprintln(stderr, "verify: no slot has content to verify")
		return 1
	}
	return code
}

func verify(ctx context.Context, w io.Writer, inv *inventory.Inventory, s inventory.System) error {
	start, last := time.Now(), time.Now().Add(time.Second)
	err := inv.Verify(ctx, s, func(done int64) {
		if now := time.Now(); now.Sub(last) > time.Second {
			last = now
			fmt.Fprintf(w, "slot %s: %d %%\n", s.Slot, done*100/s.Release.ImageSize)
		}
	})
	if err != nil {
		return fmt.Errorf("slot %s (%s): %w", s.Slot, s.File, err)
	}
	fmt.Fprintf(w, "slot %s: %d MiB are what %s names (%.1f s)\n", s.Slot, s.Release.ImageSize>>20, s.File, time.Since(start).Seconds())
	return nil
}
