package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/bench/measure"
)

// bootImage is what the machines start, on both sides to the last bit.
const bootImage = "debian-1"

// startTimeout bounds one start of an emulated machine on a busy host.
const startTimeout = 10 * time.Minute

// initTime is what the initramfs takes by the kernel's clock: from the start of
// its /init to that of the system's.
var initTime = measure.Metric{Name: "/init to switch_root", Unit: "s"}

// boot plans rows 8 and 9: starts of one machine that was set up before, with
// this project's initramfs and with others over the same kernel, system image,
// partitions and firmware. Secure Boot is on, with keys of the machine's own.
func (b *bench) boot(ctx context.Context) ([]measure.Job, []measure.Growth, error) {
	ours, err := b.provision(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("set the machine up: %w", err)
	}
	sides := []measure.Side{b.starts("halogen", ours, vm.Options{}, `halogen: unlock \(`)}
	rivals, err := b.provisionRivals(ctx, ours)
	if err != nil {
		return nil, nil, fmt.Errorf("set a machine up with dracut's initramfs: %w", err)
	}
	for _, r := range []rival{{name: dracutSame, sameModules: true}, {name: dracutAll}} {
		state, err := b.provisionRival(ctx, rivals, r)
		if err != nil {
			return nil, nil, fmt.Errorf("set the machine up for %s: %w", r.name, err)
		}
		sides = append(sides, b.starts(r.name, state, vm.Options{}, `Finished systemd-cryptsetup@data\.service`))
	}
	jobs := []measure.Job{{
		Name: "boot", Sides: sides,
		Goals: []measure.Goal{
			{Number: 8, Work: "/init to switch_root", Metric: initTime, Against: dracutSame, Kind: measure.TimesAtMost, N: 0.5},
			{Number: 8, Work: "/init to switch_root", Metric: initTime, Against: dracutAll, Kind: measure.TimesAtMost, N: 0.5},
			{Number: 9, Work: "firmware to login", Metric: measure.Wall, Against: dracutSame, Kind: measure.TimesAtMost, N: 0.8,
				Hindrance: firmwareShare},
			{Number: 9, Work: "firmware to login", Metric: measure.Wall, Against: dracutAll, Kind: measure.TimesAtMost, N: 0.8,
				Hindrance: firmwareShare},
		},
	}}
	return jobs, b.bootGrowths(ours), nil
}

const firmwareShare = "firmware, kernel and the system itself are the same on both sides"

// bootGrowths are how a start grows with the machine: by disks that look like
// nothing in particular, and by memory.
func (b *bench) bootGrowths(ours vm.State) []measure.Growth {
	growth := func(name, over string) measure.Growth {
		return measure.Growth{Number: 8, Name: name, Work: "/init to switch_root", Over: over, Metric: initTime}
	}
	disks, memory := growth("boot-disks", "disks"), growth("boot-memory", "memory")
	for _, n := range []int{1, 2, 8} {
		o := vm.Options{}
		for i := 1; i < n; i++ {
			o.Disks = append(o.Disks, vm.Disk{Path: filepath.Join(b.work, fmt.Sprintf("empty-%d.img", i))})
		}
		side := b.starts("halogen", ours, o, `halogen: unlock \(`)
		clone := side.Before
		side.Before = func(ctx context.Context) error {
			for _, d := range o.Disks {
				if err := os.WriteFile(d.Path, nil, 0o644); err != nil {
					return err
				}
				if err := os.Truncate(d.Path, 1<<30); err != nil {
					return err
				}
			}
			return clone(ctx)
		}
		disks.Points = append(disks.Points, measure.Point{At: strconv.Itoa(n), Sides: []measure.Side{side}})
	}
	for _, m := range []int{256, 1024} {
		memory.Points = append(memory.Points, measure.Point{
			At:    fmt.Sprintf("%d MiB", m),
			Sides: []measure.Side{b.starts("halogen", ours, vm.Options{Memory: m}, `halogen: unlock \(`)},
		})
	}
	return []measure.Growth{disks, memory}
}

// provision has a new machine set itself up and start once more, so that what the
// first start of a system does is done. A machine that an earlier run has set up
// from the same image is used again.
func (b *bench) provision(ctx context.Context) (vm.State, error) {
	image := filepath.Join(b.images, bootImage)
	hash := sha256.New()
	for _, name := range released() {
		content, err := os.ReadFile(filepath.Join(image, name))
		if err != nil {
			return vm.State{}, err
		}
		hash.Write(content)
	}
	made := vm.State{Dir: filepath.Join(b.out, "machines", hex.EncodeToString(hash.Sum(nil)[:16]))}
	if _, err := os.Stat(made.Dir); err == nil {
		return made, nil
	}
	state, err := vm.NewState(filepath.Join(b.work, "machine-halogen"), filepath.Join(image, "disk.img"))
	if err != nil {
		return state, err
	}
	err = b.withMachine(ctx, vm.Options{State: state}, func(ctx context.Context, m *vm.Machine) error {
		if _, err := m.WaitFor(ctx, regexp.MustCompile(`Press Enter when you have written it down`)); err != nil {
			return err
		}
		if err := m.SendLine(""); err != nil {
			return err
		}
		return shutDown(ctx, m)
	})
	if err == nil {
		err = os.MkdirAll(filepath.Dir(made.Dir), 0o755)
	}
	if err == nil {
		err = os.Rename(state.Dir, made.Dir)
	}
	return made, err
}

// withMachine switches a machine on for the time of use.
func (b *bench) withMachine(ctx context.Context, o vm.Options, use func(context.Context, *vm.Machine) error) error {
	o.Volatile, o.Log = true, filepath.Join(b.out, "console", filepath.Base(o.State.Dir))
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m, err := vm.Start(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	return use(ctx, m)
}

// shutDown logs in to a development image, which ends the first start of its
// system, and switches the machine off.
func shutDown(ctx context.Context, m *vm.Machine) error {
	for _, step := range [][2]string{{`login: $`, "root"}, {`Password: $`, "halogen"}, {`# $`, "systemctl poweroff"}} {
		if _, err := m.WaitFor(ctx, regexp.MustCompile(step[0])); err != nil {
			return err
		}
		if err := m.SendLine(step[1]); err != nil {
			return err
		}
	}
	_, err := m.Wait(ctx)
	return err
}

// starts is a side that starts a copy of a machine until it asks for a login.
// proof is what its console shows when the root partition was unlocked.
func (b *bench) starts(name string, from vm.State, o vm.Options, proof string) measure.Side {
	var shown string
	o.State = vm.State{Dir: filepath.Join(b.work, "running")}
	return measure.Side{
		Name: name,
		Before: func(context.Context) error {
			if err := os.RemoveAll(o.State.Dir); err != nil {
				return err
			}
			_, err := from.Clone(o.State.Dir)
			return err
		},
		Run: func(ctx context.Context) (measure.Sample, error) {
			before, start := childrenTime(), time.Now()
			sample := measure.Sample{}
			err := b.withMachine(ctx, o, func(ctx context.Context, m *vm.Machine) error {
				_, err := m.WaitFor(ctx, regexp.MustCompile(`login: `))
				sample[measure.Wall], shown = time.Since(start).Seconds(), m.Console().Text()
				return err
			})
			if err != nil {
				return nil, err
			}
			// QEMU and swtpm have ended, and are counted.
			sample[measure.CPU] = (childrenTime() - before).Seconds()
			sample[initTime], err = timeOfInit(shown)
			return sample, err
		},
		Check: func(context.Context) error {
			if !regexp.MustCompile(proof).MatchString(shown) {
				return fmt.Errorf("the console shows no %s", proof)
			}
			return nil
		},
	}
}

// What the kernel and systemd say when they start an init, with the kernel's
// clock in seconds.
var (
	initStarts   = regexp.MustCompile(`(?m)^\[ *([0-9.]+)\] Run /init as init process`)
	systemStarts = regexp.MustCompile(`(?m)^\[ *([0-9.]+)\] systemd\[1\]: systemd \S+ running in system mode`)
)

// timeOfInit is how long the initramfs had the machine, by a console of a start.
func timeOfInit(console string) (float64, error) {
	first := initStarts.FindStringSubmatch(console)
	all := systemStarts.FindAllStringSubmatch(console, -1) // the systemd of an initramfs says so as well
	if first == nil || len(all) == 0 {
		return 0, fmt.Errorf("the console does not show when the initramfs began and ended")
	}
	from, err := strconv.ParseFloat(first[1], 64)
	if err != nil {
		return 0, err
	}
	to, err := strconv.ParseFloat(all[len(all)-1][1], 64)
	return to - from, err
}

// childrenTime is the processor time of all children that have ended.
func childrenTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return 0 // only with an unknown "who"
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
