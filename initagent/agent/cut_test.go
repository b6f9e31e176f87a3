package agent_test

import (
	"fmt"
	mrand "math/rand/v2"
	"testing"

	"halogenos.internal/initagent/machinetest"
)

// The power is cut at every write and every flush that provisioning makes, on
// the disk, the ESP, in the root partition, the firmware's variables and the
// TPM. The next starts finish it, with the same guarantees. A random part of
// these recoveries is cut once more. FAULTS 42, 60
func TestCutProvisioning(t *testing.T) {
	const workers, samples, each = 2, 5, 3
	m := machinetest.New(t, nil)
	states, end := m.Record(m.Installed(machinetest.DiskSize), mrand.New(mrand.NewPCG(1, 2)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	t.Logf("%d operations, %d states after a cut, %d after two", len(m.Ops), len(states), workers*samples*each)
	for worker := range workers {
		t.Run(fmt.Sprintf("part %d", worker+1), func(t *testing.T) {
			t.Parallel()
			m, r := machinetest.New(t, nil), mrand.New(mrand.NewPCG(3, uint64(worker)))
			for i := worker; i < len(states); i += workers {
				m.Check(states[i])
			}
			for range samples {
				s := states[r.IntN(len(states))]
				inner, end := m.Record(s.World, r, s.How+"; then ")
				if end != "system" {
					t.Errorf("%s: ends in %s", s.How, end)
				}
				for range each {
					m.Check(inner[r.IntN(len(inner))])
				}
			}
		})
	}
}

// A disk or an ESP that reports a flush which it has not made does not survive
// this test: it looks at what it says it does.
func TestCutsNeedFlushes(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(m *machinetest.Machine)
	}{{"disk", func(m *machinetest.Machine) { m.LyingDisk = true }}, {"ESP", func(m *machinetest.Machine) { m.LyingESP = true }}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.New(t, nil)
			c.set(m)
			states, _ := m.Record(m.Installed(machinetest.DiskSize), mrand.New(mrand.NewPCG(5, 6)), "")
			m.LyingDisk, m.LyingESP = false, false
			for i := len(states) - 1; i >= 0; i-- {
				if m.Finishes(states[i]) != nil {
					return
				}
			}
			t.Errorf("all of %d states are well", len(states))
		})
	}
}
