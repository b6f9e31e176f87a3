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

const runSummary = `usage: halogen run --state DIR [--image DISK | --installer STICK] [OPTION]...

Runs a machine in QEMU, with UEFI firmware in Setup Mode and a software TPM, and
hands its serial console over. Ctrl-] leaves it and stops the machine. The
machine's disk, firmware variables and TPM are kept in the --state directory: run
it again to go on where it was.

With --installer, a new machine's disk is empty, and the machine starts from the
installer stick. The stick is pulled out when the machine restarts.
`

// emptySize is the size of a disk that is to be installed to.
const emptySize = 16 << 30

func (c command) machine(ctx context.Context, args []string) error {
	var image, installer, state string
	var memory int
	var fresh bool
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.StringVar(&image, "image", "", "`DISK` image that a new machine starts with")
	f.StringVar(&installer, "installer", "", "image of an installer `STICK` to plug in")
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
	case image != "" && installer != "":
		return c.misused(f, "--image and --installer are two ways to begin")
	}
	o := vm.Options{Memory: memory, Network: true, Progress: c.stderr}
	if installer != "" {
		o.Disks = []vm.Disk{{Path: installer, Bus: vm.USB, ReadOnly: true, BootIndex: 1}}
	}
	if o.State, err = c.machineState(state, image, installer != "", fresh); err != nil {
		return err
	}
	m, err := vm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	if installer != "" {
		go c.pullStick(ctx, m)
	}
	fmt.Fprintln(c.stderr, "the machine's console follows; Ctrl-] leaves it and stops the machine")
	if _, err := m.Attach(ctx, os.Stdin, c.stdout); err != nil {
		return err
	}
	return m.Stop(ctx)
}

// pullStick takes the machine's only stick out when the machine restarts, as a
// person does whom the installer asks to.
func (c command) pullStick(ctx context.Context, m *vm.Machine) {
	if _, err := m.QMP().WaitEvent(ctx, "RESET"); err != nil {
		return // the machine has ended
	}
	if err := m.Unplug(ctx, 1); err != nil {
		fmt.Fprintf(c.stderr, "the installer stick is still in the machine: %v\r\n", err)
	}
}

// machineState takes up the machine in the directory, or makes one, with the image
// or empty.
func (c command) machineState(dir, image string, empty, fresh bool) (vm.State, error) {
	dir, err := filepath.Abs(dir) // the software TPM takes no other
	if err != nil {
		return vm.State{}, err
	}
	s := vm.State{Dir: dir}
	if _, err := os.Stat(s.Disk()); err == nil && !fresh {
		return s, nil
	}
	if image == "" && !empty {
		return vm.State{}, fmt.Errorf("there is no machine in %s: name the --image or the --installer that it starts with", dir)
	}
	if fresh {
		if err := s.Forget(); err != nil {
			return vm.State{}, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return vm.State{}, err
	}
	s, err = vm.NewState(dir, image)
	if err == nil && empty {
		err = errors.Join(os.WriteFile(s.Disk(), nil, 0o600), os.Truncate(s.Disk(), emptySize))
	}
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: build it first: halogen build --disk", err)
	}
	return s, err
}
