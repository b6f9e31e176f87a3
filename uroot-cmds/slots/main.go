// Command slots shows what is in the machine's two slots, and which of them
// starts next.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/inventory"
)

const usage = `usage: slots [--json]

Shows the systems on this machine's EFI system partition in the order in which
the boot manager takes them, the slot that holds each one's content, and what
keeps it from starting. Reads only; needs root.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, func() (*inventory.Inventory, error) { return inventory.Take(inventory.Linux()) }))
}

func run(args []string, stdout, stderr io.Writer, take func() (*inventory.Inventory, error)) int {
	f := flag.NewFlagSet("slots", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	asJSON := f.Bool("json", false, "")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err != nil || f.NArg() > 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	inv, err := take()
	if err == nil {
		err = show(stdout, inv, *asJSON)
	}
	if err != nil {
		fmt.Fprintln(stderr, "slots:", err)
		return 1
	}
	return 0
}

func show(w io.Writer, inv *inventory.Inventory, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(inv)
	}
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
	return nil
}
