package agent

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/unlock"
)

// A trial that does not open the root partition, on a machine that nobody is at: it
// waits for as long as somebody takes to type, and the system before it starts.
func TestTrialNobodyTypes(t *testing.T) {
	m := fetchedMachine(t)
	m.extra = "what this trial makes the firmware measure"
	for range 3 {
		m.typed = nil
		m.said.Reset()
		if end := m.boot(); end != "reboot" || m.agent.Contract.Version != 2 || !strings.Contains(m.said.String(), "there is a system to fall back to") {
			t.Fatalf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
		}
		if m.waits[len(m.waits)-1] != unlock.TrialKeyTimeout || !strings.Contains(m.printed.String(), "on trial. If nobody answers within 2 minutes") {
			t.Errorf("it waits %s, and says %q", m.waits[len(m.waits)-1], m.printed.String())
		}
	}
	m.extra = ""
	m.runs(1)
	if !strings.Contains(m.failed()[2], "it never reached the system") {
		t.Errorf("failed are %v", m.failed())
	}
	m.extra = "another firmware" // and the system before it waits for its owner
	m.ends("recovery")
	if m.waits[len(m.waits)-1] != unlock.KeyTimeout {
		t.Errorf("it waits %s", m.waits[len(m.waits)-1])
	}
}

// Somebody is there: an empty line opens the console, in a trial as ever, and the key
// opens the root partition.
func TestTrialSomebodyTypes(t *testing.T) {
	m := fetchedMachine(t)
	fetched := m.world(true, nil)
	m.extra = "another firmware"
	m.typed = []string{""}
	if end := m.boot(); end != "recovery" || m.agent.Contract.Version != 2 {
		t.Errorf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
	}
	// After a wrong key there is no shell in the same boot.
	m.powerOn(fetched)
	m.typed = []string{"wrong", ""}
	for _, want := range []string{"reboot", "recovery"} {
		if end := m.boot(); end != want || m.agent.Contract.Version != 2 {
			t.Errorf("version %s ends in %s, want %s:\n%s", m.agent.Contract.Version, end, want, m.said.String())
		}
	}
	m.powerOn(fetched)
	m.accepts()
	m.runs(2)
}

// A trial that the TPM would open has not failed where nobody types the PIN: it waits for
// the recovery key as any start does, and does not make way for the system before it.
func TestTrialWithoutPINTyped(t *testing.T) {
	m := withPIN(t, "1234")
	m.startsBy("1234")
	m.fetch(newRelease(t, 2, 5, pinned))
	m.waits, m.typed = nil, []string{"1234", ""}
	if end := m.run(); end != "recovery" || m.agent.Contract.Version != 2 || m.waits[len(m.waits)-1] != unlock.KeyTimeout {
		t.Fatalf("version %s ends in %s, having waited %v:\n%s", m.agent.Contract.Version, end, m.waits, m.said.String())
	}
	m.startsBy("1234")
	if m.agent.Contract.Version != 2 || !m.agent.State.Trial {
		t.Errorf("version %s runs, on trial: %t", m.agent.Contract.Version, m.agent.State.Trial)
	}
}
