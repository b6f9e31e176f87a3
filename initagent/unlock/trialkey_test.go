package unlock_test

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/unlock"
)

// A trial that does not open the root partition, on a machine that nobody is at: it
// waits for as long as somebody takes to type, and the system before it starts.
func TestTrialNobodyTypes(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	m.Extra = "what this trial makes the firmware measure"
	for range 3 {
		m.Typed = nil
		m.Said.Reset()
		if end := m.Boot(); end != "reboot" || m.Agent.Contract.Version != 2 || !strings.Contains(m.Said.String(), "there is a system to fall back to") {
			t.Fatalf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
		}
		if m.Waits[len(m.Waits)-1] != unlock.TrialKeyTimeout || !strings.Contains(m.Printed.String(), "on trial. If nobody answers within 2 minutes") {
			t.Errorf("it waits %s, and says %q", m.Waits[len(m.Waits)-1], m.Printed.String())
		}
	}
	m.Extra = ""
	m.Runs(1)
	if !strings.Contains(m.Failed()[2], "it never reached the system") {
		t.Errorf("failed are %v", m.Failed())
	}
	m.Extra = "another firmware" // and the system before it waits for its owner
	m.Ends("recovery")
	if m.Waits[len(m.Waits)-1] != unlock.KeyTimeout {
		t.Errorf("it waits %s", m.Waits[len(m.Waits)-1])
	}
}

// Somebody is there: an empty line opens the console, in a trial as ever, and the key
// opens the root partition.
func TestTrialSomebodyTypes(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	fetched := m.World(true, nil)
	m.Extra = "another firmware"
	m.Typed = []string{""}
	if end := m.Boot(); end != "recovery" || m.Agent.Contract.Version != 2 {
		t.Errorf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
	}
	// After a wrong key there is no shell in the same boot.
	m.PowerOn(fetched)
	m.Typed = []string{"wrong", ""}
	for _, want := range []string{"reboot", "recovery"} {
		if end := m.Boot(); end != want || m.Agent.Contract.Version != 2 {
			t.Errorf("version %s ends in %s, want %s:\n%s", m.Agent.Contract.Version, end, want, m.Said.String())
		}
	}
	m.PowerOn(fetched)
	m.Accepts()
	m.Runs(2)
}

// A trial that the TPM would open has not failed where nobody types the PIN: it waits for
// the recovery key as any start does, and does not make way for the system before it.
func TestTrialWithoutPINTyped(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Waits, m.Typed = nil, []string{"1234", "k"}
	if end := m.Run(); end != "recovery" || m.Agent.Contract.Version != 2 || m.Waits[len(m.Waits)-1] != unlock.KeyTimeout {
		t.Fatalf("version %s ends in %s, having waited %v:\n%s", m.Agent.Contract.Version, end, m.Waits, m.Said.String())
	}
	m.StartsBy("1234")
	if m.Agent.Contract.Version != 2 || !m.Agent.State.Trial {
		t.Errorf("version %s runs, on trial: %t", m.Agent.Contract.Version, m.Agent.State.Trial)
	}
}
