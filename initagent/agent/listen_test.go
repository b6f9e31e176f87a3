package agent_test

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/machinetest"
)

// The console opens whenever it is asked for, over a closed root partition, and
// from then on nothing of the machine's unseals. FAULTS 79
func TestConsoleAsked(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Looks = 0
	m.Ends("system", "press r for the recovery console")
	for m.Presses = 1; m.Presses <= m.Looks; m.Presses++ {
		again := m.Looks
		m.Looks = 0
		m.Ends("recovery", "RECOVERY: the recovery console was asked for") // person.Shell looks at the rest
		m.Looks = again
	}
	m.Presses = 0
	m.Ends("system")
}

// What is typed in answer to a question is not a wish for the console.
func TestConsoleNotAskedByAnAnswer(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Extra = "another firmware"
	m.Typed = []string{m.RecoveryKey(), "n"}
	m.Ends("system")
	if m.Listening || !strings.Contains(m.Printed.String(), "Recovery key") {
		t.Errorf("it still listens: %v; it asks %q", m.Listening, m.Printed.String())
	}
}
