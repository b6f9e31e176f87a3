package agent

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
)

// A user starts a machine until it no longer changes. A trial that takes over is
// blessed by its system, as far as that does so.
type user struct {
	m       *machine
	blesses bool
	floor   uint64
	tries   int // that version 2 had left when it was looked at last; -1: it was not there
}

// live starts the machine until version 2, or, where that is bad, version 1 has
// run twice in a row without a trial, and checks each time what must never happen.
func (o *user) live() (end string) {
	settled := 0
	for range 14 {
		end = o.m.boot()
		if err := o.check(end); err != nil {
			return fmt.Sprintf("%v:\n%s", err, o.m.said.String())
		}
		if end != "system" {
			continue
		}
		if o.m.agent.State.Trial {
			settled = 0
			if booted, ok := o.m.agent.BootedName(); ok && o.blesses {
				if err := esp.Bless(espDir{o.m.esp}, booted); err != nil {
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
	a := o.m.agent
	if a.State.Floor < o.floor && end == "system" && !a.State.Trial {
		return fmt.Errorf("the floor falls from %d to %d", o.floor, a.State.Floor)
	}
	o.floor = max(o.floor, a.State.Floor)
	blessed, tries := 0, -1
	for _, name := range o.m.systems() {
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
		return fmt.Errorf("no system is blessed: %q", o.m.systems())
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
		end     func(m *machine) error
	}{
		{"blessed, and the floor rises", false, true, func(m *machine) error { return m.runsIn(2, 6, "test_1+0.efi", "test_2.efi") }},
		{"its image is corrupt", true, true, func(m *machine) error {
			if _, failed := m.failed()[2]; !failed {
				return fmt.Errorf("failed are %v", m.failed())
			}
			return m.runsIn(1, 5, "test_1.efi", "test_2+0-1.efi", "test_2+0-2.efi", "test_2+0-3.efi")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := provisionedMachine(t, pinned)
			m.fetch(newRelease(t, 2, 6, pinned))
			if c.corrupt {
				m.spoil()
			}
			start := m.world(true, nil)
			r := mrand.New(mrand.NewPCG(21, 22))
			live := func() string { return (&user{m: m, blesses: c.blesses, tries: -1}).live() }
			m.powerOn(start)
			states, end := m.recording(live, r, "")
			if end != "system" {
				t.Fatal(end)
			}
			finish := func(s cutState) {
				m.powerOn(s.world)
				m.said.Reset()
				if end := live(); end != "system" {
					t.Fatalf("%s: %s", s.how, end)
				}
				if err := c.end(m); err != nil {
					t.Fatalf("%s: %v:\n%s", s.how, err, m.said.String())
				}
			}
			for _, s := range states {
				finish(s)
			}
			twice := 0
			for range deeper {
				s := states[r.IntN(len(states))]
				m.powerOn(s.world)
				inner, end := m.recording(live, r, s.how+"; then ")
				if end != "system" {
					t.Fatalf("%s: %s", s.how, end)
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
func (m *machine) spoil() {
	m.t.Helper()
	data, err := m.partition(m.runningSlot().Other().SystemNumber())
	m.must(err)
	_, err = data.WriteAt([]byte{0xff}, 3*verity.BlockSize+7)
	m.must(err)
	m.must(m.disk.Sync())
}

// runsIn says what is not as it is to be in the end. Of the names after the first
// any is right, since a cut may cost a try.
func (m *machine) runsIn(version contract.Version, floor uint64, name string, others ...string) error {
	if m.agent.Contract.Version != version || m.openVolume == nil {
		return fmt.Errorf("version %s runs, want %s", m.agent.Contract.Version, version)
	}
	if r := m.policyRecord(); r.Floor != floor {
		return fmt.Errorf("the floor is %d, want %d", r.Floor, floor)
	}
	have := m.systems()
	for name, f := range m.esp.files {
		if !f.now.absent && path.Dir(name) == bls.Directory && esp.Stray(name) {
			return fmt.Errorf("%s was left behind", name)
		}
	}
	if len(have) != 2 || have[0] != name || !slices.Contains(others, have[1]) {
		return fmt.Errorf("the ESP has %q", have)
	}
	return nil
}
