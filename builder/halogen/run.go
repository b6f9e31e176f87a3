package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"halogenos.internal/builder/vm"
)

const runSummary = `usage: halogen run --state DIR [--image DISK] [OPTION]...

Runs a machine in QEMU, with UEFI firmware in Setup Mode and a software TPM, and
hands its serial console over. Ctrl-] leaves it and stops the machine. The
machine's disk, firmware variables and TPM are kept in the --state folder: run
it again to go on where it was.
`

func (c command) machine(ctx context.Context, args []string) error {
	var image, state string
	var memory int
	var fresh bool
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.StringVar(&image, "image", "", "`DISK` image that a new machine starts with")
	f.StringVar(&state, "state", "", "`DIR` of the machine; made when missing")
	f.IntVar(&memory, "memory", 2048, "`MIB` of memory")
	f.BoolVar(&fresh, "fresh", false, "forget the machine in --state, its disk included, and start a new one")
	rest, err := c.parse(f, args, runSummary)
	switch {
	case err != nil:
		return err
	case len(rest) > 0:
		return c.misused(f, "unexpected argument %q", rest[0])
	case state == "":
		return c.misused(f, "--state is missing")
	}
	s, err := c.machineState(state, image, fresh)
	if err != nil {
		return err
	}
	m, err := vm.Start(ctx, vm.Options{State: s, Memory: memory, Network: true, Progress: c.stderr})
	if err != nil {
		return err
	}
	defer m.Close()
	fmt.Fprintln(c.stderr, "the machine's console follows; Ctrl-] leaves it and stops the machine")
	if _, err := m.Attach(ctx, os.Stdin, c.stdout); err != nil {
		return err
	}
	return m.Stop(ctx)
}

// machineState takes up the machine in the folder, or makes one.
func (c command) machineState(dir, image string, fresh bool) (vm.State, error) {
	dir, err := filepath.Abs(dir) // the software TPM takes no other
	if err != nil {
		return vm.State{}, err
	}
	s := vm.State{Dir: dir}
	if _, err := os.Stat(s.Disk()); err == nil && !fresh {
		return s, nil
	}
	if image == "" {
		return vm.State{}, fmt.Errorf("there is no machine in %s: name the --image that it starts with", dir)
	}
	if fresh {
		for _, path := range []string{s.Disk(), s.Vars(), s.TPM()} {
			if err := os.RemoveAll(path); err != nil {
				return vm.State{}, err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return vm.State{}, err
	}
	s, err = vm.NewState(dir, image)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: build it first: halogen build --disk", err)
	}
	return s, err
}
