package agent

import (
	"fmt"
	mrand "math/rand/v2"
	"testing"
)

// cutState is a machine without power: what is left of it, and how it came to
// be.
type cutState struct {
	*world
	how string
}

// record runs a machine and returns every state that a cut before one of its
// operations leaves: with everything landed, with nothing landed that was not
// flushed, and with some of it. The last state is that of the whole run.
func (m *machine) record(from *world, r *mrand.Rand, after string) (states []cutState, end string) {
	m.powerOn(from)
	m.ops, m.durable = nil, 0
	kept := -1
	last := "the start"
	take := func() {
		at := fmt.Sprintf("%scut after operation %d (%s)", after, len(m.ops), last)
		states = append(states, cutState{m.world(true, nil), at + ", all landed"})
		if len(m.disk.pending) == 0 && m.esp.settled() {
			kept = m.durable
			return
		}
		if kept != m.durable {
			states = append(states, cutState{m.world(false, nil), at + ", only what was flushed"})
			kept = m.durable
		}
		states = append(states, cutState{m.world(false, r), at + ", some of it"})
	}
	m.snapshot = func() {
		if len(m.ops) > 0 {
			last = m.ops[len(m.ops)-1]
		}
		take()
	}
	end = m.run()
	m.snapshot()
	m.snapshot = nil
	return states, end
}

// finishes starts a machine that was cut, and checks that it ends as one that
// was not.
func (m *machine) finishes(s cutState) error {
	m.powerOn(s.world)
	m.said.Reset()
	m.printed.Reset()
	if end := m.run(); end != "system" {
		return fmt.Errorf("%s: it ends in %s:\n%s", s.how, end, m.said.String())
	}
	if err := m.provisioned(); err != nil {
		return fmt.Errorf("%s: %w\n%s", s.how, err, m.said.String())
	}
	return nil
}

// The power is cut at every write and every flush that provisioning makes, on
// the disk, the ESP, in the root partition, the firmware's variables and the
// TPM. The next starts finish it, with the same guarantees. A random part of
// these recoveries is cut once more. FAULTS 42, 60
func TestCutProvisioning(t *testing.T) {
	m := newMachine(t, nil)
	r := mrand.New(mrand.NewPCG(1, 2))
	states, end := m.record(m.installed(diskSize), r, "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	operations, bad := len(m.ops), 0
	check := func(s cutState) {
		if err := m.finishes(s); err != nil && bad < 8 {
			bad++
			t.Error(err)
		}
	}
	for _, s := range states {
		check(s)
	}
	again := 0
	const samples, each = 12, 4
	for range samples {
		s := states[r.IntN(len(states))]
		inner, end := m.record(s.world, r, s.how+"; then ")
		if end != "system" {
			t.Errorf("%s: ends in %s", s.how, end)
		}
		for range each {
			check(inner[r.IntN(len(inner))])
			again++
		}
	}
	t.Logf("%d operations, %d states after a cut, %d after two", operations, len(states), again)
}
