package machinetest

import (
	"fmt"
	mrand "math/rand/v2"
)

// CutState is a machine without power: what is left of it, and how it came to
// be.
type CutState struct {
	*World
	How string
}

// Record runs a machine and returns every state that a cut before one of its
// operations leaves: with everything landed, with nothing landed that was not
// flushed, and with some of it. The last state is that of the whole run.
func (m *Machine) Record(from *World, r *mrand.Rand, after string) (states []CutState, end string) {
	m.PowerOn(from)
	return m.Recording(m.Run, r, after)
}

// RecordOnce is record for a single start.
func (m *Machine) RecordOnce(r *mrand.Rand) (states []CutState, end string) {
	return m.Recording(m.Boot, r, "")
}

// Recording runs the machine and returns what a cut after each of its operations leaves, and how it ended.
func (m *Machine) Recording(run func() string, r *mrand.Rand, after string) (states []CutState, end string) {
	m.Ops, m.durable = nil, 0
	kept := -1
	last := "the start"
	take := func() {
		at := fmt.Sprintf("%scut after operation %d (%s)", after, len(m.Ops), last)
		states = append(states, CutState{m.World(true, nil), at + ", all landed"})
		if len(m.Disk.pending) == 0 && m.ESP.settled() {
			kept = m.durable
			return
		}
		if kept != m.durable {
			states = append(states, CutState{m.World(false, nil), at + ", only what was flushed"})
			kept = m.durable
		}
		// Where an area is filled, one mixture is as good as the next.
		if len(m.Disk.pending) <= 6 || len(m.Ops)%8 == 0 {
			states = append(states, CutState{m.World(false, r), at + ", some of it"})
		}
	}
	m.Snapshot = func() {
		if len(m.Ops) > 0 {
			last = m.Ops[len(m.Ops)-1]
		}
		take()
	}
	end = run()
	m.Snapshot()
	m.Snapshot = nil
	return states, end
}

// Finishes starts a machine that was cut, and checks that it ends as one that
// was not.
func (m *Machine) Finishes(s CutState) error {
	m.PowerOn(s.World)
	m.Said.Reset()
	m.Printed.Reset()
	if end := m.Run(); end != "system" {
		return fmt.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
	}
	if err := m.Provisioned(); err != nil {
		return fmt.Errorf("%s: %w\n%s", s.How, err, m.Said.String())
	}
	return nil
}

// Check fails the test where the machine does not finish what was cut.
func (m *Machine) Check(s CutState) {
	m.T.Helper()
	if err := m.Finishes(s); err != nil {
		m.T.Error(err)
	}
}
