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
	"strings"
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
var (
	initTime = measure.Metric{Name: "/init to switch_root", Unit: "s"}
	// initCPU is what the emulator's processor has to do in that time: waits are
	// not in it, and it does not depend on what else the host does.
	initCPU = measure.Metric{Name: "/init to switch_root, processor time", Unit: "s"}
)

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
		sides = append(sides, b.starts(r.name, state, vm.Options{}, `Finished systemd-cryptsetup@data`))
	}
	jobs := []measure.Job{{
		Name: "boot", Sides: sides,
		Goals: bootGoals(),
	}}
	return jobs, b.bootGrowths(ours), nil
}

// bootGoals are the same four times: by the clock and in processor time, against
// an initramfs with the same modules and the usual one.
func bootGoals() (goals []measure.Goal) {
	const firmware = "firmware, kernel and the system itself are the same on both sides"
	for _, against := range []string{dracutSame, dracutAll} {
		for _, g := range []measure.Goal{
			{Number: 8, Work: "/init to switch_root", Metric: initTime, N: 0.5},
			{Number: 8, Work: "the same, processor time", Metric: initCPU, N: 0.5},
			{Number: 9, Work: "firmware to login", Metric: measure.Wall, N: 0.8, Hindrance: firmware},
			{Number: 9, Work: "the same, processor time", Metric: measure.CPU, N: 0.8, Hindrance: firmware},
		} {
			g.Against, g.Kind = against, measure.TimesAtMost
			goals = append(goals, g)
		}
	}
	return goals
}

// bootGrowths are how a start grows with the machine: by disks that look like
// nothing in particular, and by memory.
func (b *bench) bootGrowths(ours vm.State) []measure.Growth {
	growth := func(name, over string) measure.Growth {
		return measure.Growth{Number: 8, Name: name, Work: "/init to switch_root", Over: over, Metric: initTime, Runs: 3}
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
		if err := confirmKey(ctx, m); err != nil {
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
		Run: func(ctx context.Context) (sample measure.Sample, err error) {
			start := time.Now()
			return sample, b.withMachine(ctx, o, func(ctx context.Context, m *vm.Machine) error {
				sample, err = timeStart(ctx, m, start, regexp.MustCompile(proof))
				return err
			})
		},
	}
}

// timeStart follows a machine from power on to its login.
func timeStart(ctx context.Context, m *vm.Machine, start time.Time, proof *regexp.Regexp) (measure.Sample, error) {
	var clock []float64
	var spent []time.Duration
	for _, mark := range []*regexp.Regexp{initStarts, proof, systemStarts, regexp.MustCompile(`login: `)} {
		match, err := m.WaitFor(ctx, mark)
		if err != nil {
			return nil, err
		}
		now, err := m.ProcessorTime()
		if err != nil {
			return nil, err
		}
		spent = append(spent, now)
		if len(match) > 1 {
			at, err := strconv.ParseFloat(match[1], 64)
			if err != nil {
				return nil, err
			}
			clock = append(clock, at)
		}
	}
	return measure.Sample{
		measure.Wall: time.Since(start).Seconds(), measure.CPU: spent[3].Seconds(),
		initTime: clock[1] - clock[0], initCPU: (spent[2] - spent[0]).Seconds(),
	}, nil
}

// What the kernel and systemd say when they start an init, with the kernel's
// clock in seconds.
var (
	initStarts   = regexp.MustCompile(`(?m)^\[ *([0-9.]+)\] Run /init as init process`)
	systemStarts = regexp.MustCompile(`(?m)^\[ *([0-9.]+)\] systemd\[1\]: systemd \S+ running in system mode`)
)

// confirmKey types the groups of the recovery key that the machine asks for: one whose key
// was not confirmed would offer another at each start.
func confirmKey(ctx context.Context, m *vm.Machine) error {
	shown, err := m.WaitFor(ctx, regexp.MustCompile(`RECOVERY KEY:\s+((?:[a-z]{8}-){7}[a-z]{8})\s`))
	if err != nil {
		return err
	}
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`Press Enter when you have written it down`)); err != nil {
		return err
	}
	if err := m.SendLine(""); err != nil {
		return err
	}
	asked, err := m.WaitFor(ctx, regexp.MustCompile(`Type group ([1-8]) and group ([1-8]) of it`))
	if err != nil {
		return err
	}
	letters := strings.Split(shown[1], "-")
	time.Sleep(time.Second) // what was typed before the question was out is forgotten
	return m.SendLine(letters[asked[1][0]-'1'] + letters[asked[2][0]-'1'])
}
