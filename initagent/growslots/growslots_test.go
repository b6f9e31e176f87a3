package growslots_test

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/growth"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/initagent/growslots"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/snapshot"
)

// wanted is the size of slots that is asked for, in bytes.
const wanted = 34 << 20

// asks is what the running system writes.
func asks(m *machinetest.Machine, size int64) {
	m.T.Helper()
	text, err := growth.Request{SlotSize: size, By: growth.ByOwner}.Encode()
	m.Must(err)
	m.RootFiles()[growslots.RequestFile] = text
}

func outcome(m *machinetest.Machine) *growth.Outcome {
	m.T.Helper()
	if m.RootFiles()[growslots.RequestFile] != nil {
		m.T.Error("the request is still there")
	}
	o, err := growth.ParseOutcome(m.RootFiles()[growslots.OutcomeFile])
	m.Must(err)
	return o
}

// grown is the error of a machine that is not as it shall be.
func grown(m *machinetest.Machine) error {
	table, _, err := m.Table()
	if err != nil {
		return err
	}
	for _, slot := range layout.Slots {
		if size, err := layout.Size(table, slot.System()); err != nil || size != wanted {
			return fmt.Errorf("slot %s has %d bytes, %w", slot, size, err)
		}
	}
	if err := m.CheckBlocks(); err != nil {
		return err
	}
	if o := outcome(m); !o.Done || o.SlotSize != wanted {
		return fmt.Errorf("the answer is %+v", o)
	}
	return nil
}

// inUse is a machine with data at the end of its root partition.
func inUse(t *testing.T, change func(*contract.Contract)) *machinetest.Machine {
	m := machinetest.ProvisionedMachine(t, change)
	m.FillsRoot(5, 8<<20)
	return m
}

// The whole procedure, cut before each write of it: the next starts come to larger slots, and
// all data is there.
func TestGrow(t *testing.T) {
	for name, change := range map[string]func(*contract.Contract){"ext4": nil, "btrfs": machinetest.OnBtrfs} {
		t.Run(name, func(t *testing.T) {
			m := inUse(t, change)
			asks(m, wanted)
			m.Said.Reset()
			states, end := m.Recording(m.Run, mrand.New(mrand.NewPCG(1, 2)), "")
			if err := grown(m); end != "system" || err != nil {
				t.Fatalf("it ends in %s, %v:\n%s", end, err, m.Said.String())
			}
			for _, says := range []string{"grow-slots:", "the slots are larger"} {
				if !strings.Contains(m.Said.String(), says) {
					t.Errorf("it does not say %q:\n%s", says, m.Said.String())
				}
			}
			if !m.JournalHas(journal.Grown, "") {
				t.Error("the journal does not say so")
			}
			for _, s := range states {
				m.PowerOn(s.World)
				m.Said.Reset()
				if end := m.Run(); end != "system" {
					t.Fatalf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
				}
				if err := grown(m); err != nil {
					t.Fatalf("%s: %v:\n%s", s.How, err, m.Said.String())
				}
			}
			t.Logf("%d states after a cut", len(states))
		})
	}
}

// Where more must move than the other slot holds, it goes there in steps.
func TestGrowInSteps(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.FillsRoot(700, 64<<10)
	asks(m, wanted)
	m.Said.Reset()
	m.Ends("system")
	if err := grown(m); err != nil || strings.Count(m.Said.String(), "more must move than slot b holds") == 0 {
		t.Errorf("%v:\n%s", err, m.Said.String())
	}
}

// What cannot be done costs no boot, changes nothing but, at most, the slot that does not run, is
// said, and is not tried again.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		size    int64
		spoil   func(m *machinetest.Machine)
		says    string
		missing int64
	}{
		"a full root partition":              {wanted, func(m *machinetest.Machine) { m.Room = snapshot.Room{Size: 400 << 20, Free: 100 << 20} }, "too full", 28 << 20},
		"no module":                          {wanted, func(m *machinetest.Machine) { m.NoModule = "dm_snapshot" }, "no dm-snapshot", 0},
		"no program":                         {wanted, func(m *machinetest.Machine) { m.NoResize = errors.New("no resize2fs") }, "no resize2fs", 0},
		"a file system of two disks":         {wanted, func(m *machinetest.Machine) { m.NoEnd = errors.New("it has 2 devices") }, "2 devices", 0},
		"a program that fails":               {wanted, func(m *machinetest.Machine) { m.ResizeFails = errors.New("e2fsck says no") }, "e2fsck says no", 0},
		"more than the disk has":             {1 << 30, nil, "are missing", -1},
		"a request of no form":               {wanted, func(m *machinetest.Machine) { m.RootFiles()[growslots.RequestFile] = []byte("{}") }, "cannot be read", 0},
		"a store that never is large enough": {wanted, func(m *machinetest.Machine) { m.ResizeFails = shrink.ErrOverflow }, "given the snapshot up", 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := inUse(t, nil)
			asks(m, c.size)
			if c.spoil != nil {
				c.spoil(m)
			}
			m.Said.Reset()
			m.Ends("system", "grow-slots FAILED")
			if o := outcome(m); o.Done || !strings.Contains(o.Reason, c.says) || o.Missing != c.missing && (c.missing >= 0 || o.Missing == 0) {
				t.Errorf("the answer is %+v, want %q, %d", o, c.says, c.missing)
			}
			m.Must(m.CheckBlocks())
			m.Said.Reset()
			m.Ends("system")
			if strings.Contains(m.Said.String(), "grow-slots") {
				t.Errorf("it is tried again:\n%s", m.Said.String())
			}
		})
	}
}

// Slots that are that large already are an answer, and no restart.
func TestLargeEnough(t *testing.T) {
	m := inUse(t, nil)
	asks(m, machinetest.SlotSize)
	if end := m.Boot(); end != "system" || !outcome(m).Done {
		t.Errorf("it ends in %s:\n%s", end, m.Said.String())
	}
}
