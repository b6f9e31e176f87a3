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
	return m.recording(m.run, r, after)
}

// recordOnce is record for a single start.
func (m *machine) recordOnce(r *mrand.Rand) (states []cutState, end string) {
	return m.recording(m.boot, r, "")
}

func (m *machine) recording(run func() string, r *mrand.Rand, after string) (states []cutState, end string) {
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
		// Where an area is filled, one mixture is as good as the next.
		if len(m.disk.pending) <= 6 || len(m.ops)%8 == 0 {
			states = append(states, cutState{m.world(false, r), at + ", some of it"})
		}
	}
	m.snapshot = func() {
		if len(m.ops) > 0 {
			last = m.ops[len(m.ops)-1]
		}
		take()
	}
	end = run()
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
	const workers, samples, each = 2, 5, 3
	m := newMachine(t, nil)
	states, end := m.record(m.installed(diskSize), mrand.New(mrand.NewPCG(1, 2)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	t.Logf("%d operations, %d states after a cut, %d after two", len(m.ops), len(states), workers*samples*each)
	for worker := range workers {
		t.Run(fmt.Sprintf("part %d", worker+1), func(t *testing.T) {
			t.Parallel()
			m, r := newMachine(t, nil), mrand.New(mrand.NewPCG(3, uint64(worker)))
			for i := worker; i < len(states); i += workers {
				m.check(states[i])
			}
			for range samples {
				s := states[r.IntN(len(states))]
				inner, end := m.record(s.world, r, s.how+"; then ")
				if end != "system" {
					t.Errorf("%s: ends in %s", s.how, end)
				}
				for range each {
					m.check(inner[r.IntN(len(inner))])
				}
			}
		})
	}
}

func (m *machine) check(s cutState) {
	m.t.Helper()
	if err := m.finishes(s); err != nil {
		m.t.Error(err)
	}
}

// A disk or an ESP that reports a flush which it has not made does not survive
// this test: it looks at what it says it does.
func TestCutsNeedFlushes(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(m *machine)
	}{{"disk", func(m *machine) { m.lyingDisk = true }}, {"ESP", func(m *machine) { m.lyingESP = true }}} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, nil)
			c.set(m)
			states, _ := m.record(m.installed(diskSize), mrand.New(mrand.NewPCG(5, 6)), "")
			m.lyingDisk, m.lyingESP = false, false
			for i := len(states) - 1; i >= 0; i-- {
				if m.finishes(states[i]) != nil {
					return
				}
			}
			t.Errorf("all of %d states are well", len(states))
		})
	}
}
