package agent

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/hw"
)

// listener is asked once it was asked that often.
type listener struct{ m *machine }

// Listen implements hw.Person.
func (p person) Listen() hw.Listener {
	if p.m.listening {
		p.m.t.Error("two listen at once")
	}
	p.m.listening = true
	return listener(p)
}

func (l listener) Asked() bool {
	if !l.m.listening {
		l.m.t.Error("it is asked after it was closed")
	}
	l.m.looks++
	return l.m.presses > 0 && l.m.looks >= l.m.presses
}

func (l listener) Touched() bool { return l.m.presses > 0 && l.m.looks >= l.m.presses }

func (l listener) Close() { l.m.listening = false }

// The console opens whenever it is asked for, over a closed root partition, and
// from then on nothing of the machine's unseals. FAULTS 79
func TestConsoleAsked(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.looks = 0
	m.ends("system", "press r for the recovery console")
	for m.presses = 1; m.presses <= m.looks; m.presses++ {
		again := m.looks
		m.looks = 0
		m.ends("recovery", "RECOVERY: the recovery console was asked for") // person.Shell looks at the rest
		m.looks = again
	}
	m.presses = 0
	m.ends("system")
}

// What is typed in answer to a question is no wish for the console.
func TestConsoleNotAskedByAnAnswer(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.extra = "another firmware"
	m.typed = []string{m.recoveryKey(), "n"}
	m.ends("system")
	if m.listening || !strings.Contains(m.printed.String(), "Recovery key") {
		t.Errorf("it still listens: %v; it asks %q", m.listening, m.printed.String())
	}
}
