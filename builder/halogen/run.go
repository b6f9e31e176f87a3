package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"halogenos.internal/builder/vm"
)

const runSummary = `usage: halogen run --state DIR [--image DISK | --installer STICK] [OPTION]...

Runs a machine in QEMU, with UEFI firmware in Setup Mode and a software TPM, and
hands its serial console over. Ctrl-] leaves it and stops the machine. The
machine's disk, firmware variables and TPM are kept in the --state directory: run
it again to go on where it was.

With --installer, a new machine's disk is empty, and the machine starts from the
installer stick. The stick is pulled out when the machine restarts.

With --display the machine also has a screen, a keyboard, a pointer, a sound card
and, where this QEMU can, a clipboard that it shares with you:

  window  in a window; by VNC where there is no display server, or none that this
          QEMU has a window for
  vnc     by VNC at a port of 127.0.0.1, which is said. Without a password:
          anyone who has an account on this machine can look and type, too
  none    not shown; with --screenshot it has a screen all the same
`

// emptySize is the size of a disk that is to be installed to: room for the slots of a
// desktop. It takes only what is written to it.
const emptySize = 32 << 30

// machineFlags are the options of run.
type machineFlags struct {
	image, installer, state           string
	display, screenshot, acceleration string
	memory, cpus                      int
	fresh, sound                      bool
}

func (r *machineFlags) define(f *flag.FlagSet) {
	f.StringVar(&r.image, "image", "", "`DISK` image that a new machine starts with")
	f.StringVar(&r.installer, "installer", "", "image of an installer `STICK` to plug in")
	f.StringVar(&r.state, "state", "", "`DIR` of the machine; made when missing")
	f.IntVar(&r.memory, "memory", 2048, "`MIB` of memory")
	f.IntVar(&r.cpus, "cpus", 1, "`NUMBER` of processors")
	f.StringVar(&r.acceleration, "accel", "tcg", "`NAME` of QEMU's accelerator: tcg works everywhere, kvm is many times as fast where this machine has it")
	f.StringVar(&r.display, "display", "none", "`WHERE` the machine's screen is shown: window, vnc or none")
	f.StringVar(&r.screenshot, "screenshot", "", "`FILE` that always holds a picture of the screen (PNG), a few seconds old at most, and the last one at the end")
	f.BoolVar(&r.sound, "sound", false, "play the machine's sound here; by default nobody hears it, but a VNC viewer that asks")
	f.BoolVar(&r.fresh, "fresh", false, "forget the machine in --state, its disk included, and start a new one")
}

// checkMachine refuses what does not go together.
func (c command) checkMachine(f *flag.FlagSet, r machineFlags, rest []string) error {
	switch {
	case len(rest) > 0:
		return c.misused(f, "unexpected argument %q", rest[0])
	case r.state == "":
		return c.misused(f, "--state is missing")
	case r.image != "" && r.installer != "":
		return c.misused(f, "--image and --installer are two ways to begin")
	case !slices.Contains([]string{"window", "vnc", "none"}, r.display):
		return c.misused(f, "--display %q: want window, vnc or none", r.display)
	case r.sound && r.display == "none":
		return c.misused(f, "--sound wants a --display")
	}
	return nil
}

func (c command) machine(ctx context.Context, args []string) error {
	var r machineFlags
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	r.define(f)
	rest, err := c.parse(f, args, runSummary)
	if err != nil {
		return err
	}
	if err := c.checkMachine(f, r, rest); err != nil {
		return err
	}
	o, err := c.machineOptions(ctx, r)
	if err != nil {
		return err
	}
	if o.State, err = c.machineState(r.state, r.image, r.installer != "", r.fresh); err != nil {
		return err
	}
	m, err := vm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	if r.installer != "" {
		go c.pullStick(ctx, m)
	}
	return c.attend(ctx, m, o.Screen, r.screenshot)
}

// machineOptions are what the flags ask for, as far as it can be had here.
func (c command) machineOptions(ctx context.Context, r machineFlags) (vm.Options, error) {
	o := vm.Options{Memory: r.memory, CPUs: r.cpus, Accel: r.acceleration, Sound: r.sound, Network: true, Progress: c.stderr}
	if r.installer != "" {
		o.Disks = []vm.Disk{{Path: r.installer, Bus: vm.USB, ReadOnly: true, BootIndex: 1}}
	}
	var can vm.Abilities
	if r.display == "window" {
		var err error
		if can, err = vm.FindAbilities(ctx); err != nil {
			return o, err
		}
	}
	var why string
	if o.Screen, why = chooseScreen(r.display, r.screenshot != "", c.getenv, can); why != "" {
		fmt.Fprintf(c.stderr, "no window: %s; the screen is shown by VNC\n", why)
	}
	return o, nil
}

// chooseScreen says where a screen is shown, and why not in the window that was asked for.
func chooseScreen(display string, pictures bool, getenv func(string) string, can vm.Abilities) (s vm.Screen, why string) {
	switch {
	case display == "none" && pictures:
		return vm.HiddenScreen, ""
	case display == "none":
		return vm.NoScreen, ""
	case display == "vnc":
		return vm.VNCScreen, ""
	case getenv("WAYLAND_DISPLAY") == "" && getenv("DISPLAY") == "":
		return vm.VNCScreen, "there is no display server here (neither WAYLAND_DISPLAY nor DISPLAY is set)"
	case can.Window() == "":
		return vm.VNCScreen, "this QEMU has none: apt-get install qemu-system-gui brings it (Debian's name; other distributions have their own)"
	}
	return vm.WindowScreen, ""
}

// attend is with the machine until its user leaves it or it ends.
func (c command) attend(ctx context.Context, m *vm.Machine, screen vm.Screen, picture string) error {
	if screen == vm.VNCScreen {
		address, err := m.VNC(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "the machine's screen: vnc://%s, as with: vncviewer %[1]s\n", address)
	}
	last := func() error { return nil }
	if picture != "" {
		if err := takePicture(ctx, m, picture); err != nil {
			return err
		}
		last = c.takePictures(ctx, m, picture)
	}
	fmt.Fprintln(c.stderr, "the machine's console follows; Ctrl-] leaves it and stops the machine")
	detached, err := m.Attach(ctx, os.Stdin, c.stdout)
	if err == nil && detached {
		err = last()
	}
	if err != nil {
		return err
	}
	return m.Stop(ctx)
}

// pictureEvery is how old a picture of the screen becomes.
const pictureEvery = 5 * time.Second

// takePictures keeps a file with what the screen shows, until the machine ends. What it
// returns ends that with a last picture.
func (c command) takePictures(ctx context.Context, m *vm.Machine, path string) (last func() error) {
	each, stop := context.WithCancel(ctx)
	var taking sync.WaitGroup
	taking.Go(func() {
		defer stop()
		for {
			select {
			case <-each.Done():
				return
			case <-m.Done():
				return
			case <-time.After(pictureEvery):
			}
			err := takePicture(each, m, path)
			if err != nil && each.Err() == nil && !errors.Is(err, vm.ErrEnded) {
				fmt.Fprintf(c.stderr, "%s stays as it is: %v\r\n", path, err)
				return
			}
		}
	})
	return func() error {
		stop()
		taking.Wait()
		return takePicture(ctx, m, path)
	}
}

// takePicture writes what the screen shows. Anyone who reads the file meanwhile reads the
// picture before.
func takePicture(ctx context.Context, m *vm.Machine, path string) error {
	part := path + ".new"
	err := m.Screendump(ctx, part)
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("picture of the screen: %w", err), ignoreAbsent(os.Remove(part)))
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
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
