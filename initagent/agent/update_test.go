package agent_test

import (
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/machinetest"
)

// A user starts a machine until it no longer changes. A trial that takes over is
// blessed by its system, as far as that does so.
type user struct {
	m       *machinetest.Machine
	blesses bool
	floor   uint64
	tries   int // that version 2 had left when it was looked at last; -1: it was not there
}

// live starts the machine until version 2, or, where that is bad, version 1 has
// run twice in a row without a trial, and checks each time what must never happen.
func (o *user) live() (end string) {
	settled := 0
	for range 14 {
		end = o.m.Boot()
		if err := o.check(end); err != nil {
			return fmt.Sprintf("%v:\n%s", err, o.m.Said.String())
		}
		if end != "system" {
			continue
		}
		if o.m.Agent.State.Trial {
			settled = 0
			if booted, ok := o.m.Agent.BootedName(); ok && o.blesses {
				if err := esp.Bless(machinetest.ESPDir{MemESP: o.m.ESP}, booted); err != nil {
					return err.Error()
				}
			}
			continue
		}
		if settled++; settled == 2 {
			return "system"
		}
	}
	return "it does not end: " + end
}

// check is what holds at each moment: something verified has come up or comes up
// next, the floor does not fall, tries do not rise, and the running system's UKI,
// where it is blessed, is there.
func (o *user) check(end string) error {
	if end != "system" && end != "reboot" {
		return fmt.Errorf("ends in %s", end)
	}
	a := o.m.Agent
	if a.State.Floor < o.floor && end == "system" && !a.State.Trial {
		return fmt.Errorf("the floor falls from %d to %d", o.floor, a.State.Floor)
	}
	o.floor = max(o.floor, a.State.Floor)
	blessed, tries := 0, -1
	for _, name := range o.m.Systems() {
		n, err := bls.Parse(name)
		if err != nil {
			return err
		}
		if !n.Counted {
			blessed++
		}
		if n.Version == 2 && n.Counted {
			tries = n.Left
		}
	}
	if o.tries >= 0 && tries > o.tries {
		return fmt.Errorf("tries rise from %d to %d", o.tries, tries)
	}
	o.tries = tries
	if blessed == 0 {
		return fmt.Errorf("no system is blessed: %q", o.m.Systems())
	}
	return nil
}

// An update is cut before and after every write that staging, the trial, the
// bless and the floor's rise make, on the disk, the ESP, the TPM and the root
// partition. Whatever is left goes on to the same end. FAULTS 42, 46, 49, 51, 73
func TestCutUpdate(t *testing.T) {
	const deeper = 6
	for _, c := range []struct {
		name    string
		corrupt bool
		blesses bool
		end     func(m *machinetest.Machine) error
	}{
		{"blessed, and the floor rises", false, true, func(m *machinetest.Machine) error { return runsIn(m, 2, 6, "test_1+0.efi", "test_2.efi") }},
		{"its image is corrupt", true, true, func(m *machinetest.Machine) error {
			if _, failed := m.Failed()[2]; !failed {
				return fmt.Errorf("failed are %v", m.Failed())
			}
			return runsIn(m, 1, 5, "test_1.efi", "test_2+0-1.efi", "test_2+0-2.efi", "test_2+0-3.efi")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
			if c.corrupt {
				spoil(m)
			}
			start := m.World(true, nil)
			r := mrand.New(mrand.NewPCG(21, 22))
			live := func() string { return (&user{m: m, blesses: c.blesses, tries: -1}).live() }
			m.PowerOn(start)
			states, end := m.Recording(live, r, "")
			if end != "system" {
				t.Fatal(end)
			}
			finish := func(s machinetest.CutState) {
				m.PowerOn(s.World)
				m.Said.Reset()
				if end := live(); end != "system" {
					t.Fatalf("%s: %s", s.How, end)
				}
				if err := c.end(m); err != nil {
					t.Fatalf("%s: %v:\n%s", s.How, err, m.Said.String())
				}
			}
			for _, s := range states {
				finish(s)
			}
			twice := 0
			for range deeper {
				s := states[r.IntN(len(states))]
				m.PowerOn(s.World)
				inner, end := m.Recording(live, r, s.How+"; then ")
				if end != "system" {
					t.Fatalf("%s: %s", s.How, end)
				}
				for range 3 {
					finish(inner[r.IntN(len(inner))])
					twice++
				}
			}
			t.Logf("%d states after a cut, %d after two", len(states), twice)
		})
	}
}

// spoil damages a block of the release that was fetched, which staging does not
// read.
func spoil(m *machinetest.Machine) {
	m.T.Helper()
	data, err := m.Partition(m.RunningSlot().Other().System())
	m.Must(err)
	_, err = data.WriteAt([]byte{0xff}, 3*verity.BlockSize+7)
	m.Must(err)
	m.Must(m.Disk.Sync())
}

// runsIn says what is not as it is to be in the end. Of the names after the first
// any is right, since a cut may cost a try.
func runsIn(m *machinetest.Machine, version contract.Version, floor uint64, name string, others ...string) error {
	if m.Agent.Contract.Version != version || m.OpenVolume == nil {
		return fmt.Errorf("version %s runs, want %s", m.Agent.Contract.Version, version)
	}
	if r := m.PolicyRecord(); r.Floor != floor {
		return fmt.Errorf("the floor is %d, want %d", r.Floor, floor)
	}
	have := m.Systems()
	for name, f := range m.ESP.Files {
		if !f.Now.Absent && path.Dir(name) == bls.Directory && esp.Stray(name) {
			return fmt.Errorf("%s was left behind", name)
		}
	}
	if len(have) != 2 || have[0] != name || !slices.Contains(others, have[1]) {
		return fmt.Errorf("the ESP has %q", have)
	}
	return nil
}
