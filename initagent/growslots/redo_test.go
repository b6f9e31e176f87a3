package growslots_test

import (
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/machinetest"
)

// waiting is a machine that was cut in the middle of the redo.
func waiting(t *testing.T) *machinetest.Machine {
	t.Helper()
	m := inUse(t, nil)
	asks(m, wanted)
	var cuts []*machinetest.World
	m.Snapshot = func() {
		if h, err := m.Header(); err == nil {
			if waits, err := h.Redo(); err == nil && waits != nil {
				cuts = append(cuts, m.World(true, nil))
			}
		}
	}
	m.Run()
	m.Snapshot = nil
	if len(cuts) < 5 {
		t.Fatalf("there are %d states in which something waits", len(cuts))
	}
	m.PowerOn(cuts[len(cuts)/2])
	if m.CheckBlocks() == nil {
		t.Fatal("nothing is half-way")
	}
	m.Said.Reset()
	return m
}

// Once the first chunk is copied, both copies of the header say what waits, although the machine
// stopped between them before: with one of them damaged, nothing opens what is half done.
func TestBothCopiesSayWhatWaits(t *testing.T) {
	m := inUse(t, nil)
	asks(m, wanted)
	look := func() (waits bool, health luks2.Health) {
		root, err := m.Partition(layout.Root)
		m.Must(err)
		h, health, err := luks2.Open(root, root.Size())
		m.Must(err)
		redo, err := h.Redo()
		m.Must(err)
		return redo != nil, health
	}
	var between *machinetest.World
	m.Snapshot = func() {
		if waits, health := look(); waits && !health.Good() && between == nil {
			between = m.World(true, nil)
		}
	}
	m.Run()
	m.Snapshot = nil
	if between == nil {
		t.Fatal("the machine is never between the copies")
	}
	m.PowerOn(between)
	if waits, health := look(); !waits || health.Good() {
		t.Fatalf("something waits: %t, %+v", waits, health)
	}
	states := 0
	m.Snapshot = func() {
		waits, health := look()
		if !waits || m.CheckBlocks() == nil {
			return
		}
		if states++; !health.Good() {
			t.Errorf("chunks are copied, and a copy of the header says nothing: %+v", health)
		}
	}
	m.Run()
	m.Snapshot = nil
	if states == 0 {
		t.Fatal("nothing is ever half-way")
	}
	m.Ends("system")
	m.Must(grown(m))
}

// The recovery console opens the volume only once all is at its place.
func TestConsoleFinishes(t *testing.T) {
	m := waiting(t)
	m.Presses = 1
	m.Ends("recovery")
	m.Presses = 0
	r, c := m.Console()
	m.Types(m.RecoveryKey())
	m.Works(r.Unlock(c))
	m.Must(m.CheckBlocks())
	m.Must(r.Lock())
	m.Ends("system")
	m.Must(grown(m))
}

// Where what waits is not what was put aside, or is gone, nothing is written, nothing is opened,
// and it is said. Once it is back, all is well.
func TestNotWhatWaits(t *testing.T) {
	for name, c := range map[string]struct {
		at   int64 // in the store
		says string
	}{
		"content":     {3*4096 + 5, "not what was put aside"},
		"the list":    {4096, "that cannot be finished"},
		"the header":  {0, "that cannot be finished"},
		"it was full": {4, "given the snapshot up"},
	} {
		t.Run(name, func(t *testing.T) {
			m := waiting(t)
			store, err := m.Partition(layout.SystemB)
			m.Must(err)
			was := make([]byte, 1)
			_, err = store.ReadAt(was, c.at)
			m.Must(err)
			_, err = store.WriteAt([]byte{was[0] ^ 1}, c.at)
			m.Must(err)
			m.Must(store.Sync())
			m.Ops = nil
			m.Typed = []string{"", ""}
			if end := m.Boot(); end == "system" || m.OpenVolume != nil || !strings.Contains(m.Said.String(), c.says) || !strings.Contains(m.Said.String(), `partition "system-b"`) {
				t.Errorf("it ends in %s:\n%s", end, m.Said.String())
			}
			if written := m.Written("disk write"); len(written) > 0 {
				t.Errorf("it writes %q", written)
			}
			_, err = store.WriteAt(was, c.at)
			m.Must(err)
			m.Must(store.Sync())
			m.Typed = nil
			m.Run() // out of the console, where the boot before asked for it
			m.Ends("system")
			m.Must(grown(m))
		})
	}
}

// An installation that keeps the root partition would write over what waits.
func TestNotKept(t *testing.T) {
	m := waiting(t)
	root, err := m.Partition(layout.Root)
	m.Must(err)
	if _, err := rootheader.Check(root, root.Size()); err == nil || !strings.Contains(err.Error(), "made smaller") {
		t.Errorf("it can be kept: %v", err)
	}
	m.Ends("system")
	if _, err := rootheader.Check(root, root.Size()); err != nil {
		t.Error(err)
	}
}

// The slot that does not run holds what is changed: its UKI is gone before, so that nothing
// starts from it; and the next release goes there.
func TestOtherSlot(t *testing.T) {
	m := inUse(t, nil)
	m.Fetch(machinetest.NewRelease(t, 2, 5, nil))
	m.Runs(2)
	m.Bless()
	m.Ends("system")
	if len(m.Systems()) != 2 {
		t.Fatalf("the ESP has %q", m.Systems())
	}
	asks(m, wanted)
	m.Runs(2)
	m.Must(grown(m))
	if got := m.Systems(); !slices.Equal(got, []string{"test_2.efi"}) {
		t.Errorf("the ESP has %q", got)
	}
	m.Fetch(machinetest.NewRelease(t, 3, 5, nil))
	m.Runs(3)
	m.Must(m.CheckBlocks())
}
