package agent

import (
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/vault"
)

// notes writes the note of the recovery key, as a first boot or root of the running system.
func (m *machine) notes(n keynote.Note) {
	m.t.Helper()
	text, err := n.Encode()
	m.must(err)
	m.rootFiles()[recoverykey.NoteFile] = text
}

// note is the one that is there.
func (m *machine) note() keynote.Note { return recoverykey.Noted(store{m}) }

// recoveries counts the recovery keys.
func (m *machine) recoveries() int {
	m.t.Helper()
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	_, lock, err := vault.Look(s, s.Size())
	m.must(err)
	return len(lock.Recoveries)
}

// A first boot whose key nobody types back says so from then on, and the one that confirms
// it says nothing.
func TestFirstKeyConfirmed(t *testing.T) {
	for _, later := range []bool{false, true} {
		m := newMachine(t, nil)
		m.later = later
		m.ends("system")
		if n := m.note(); n.Unconfirmed != later || later && n.Shown != 1 {
			t.Errorf("put off %t: %+v", later, n)
		}
	}
}

// Three starts offer another key, for a quarter of a minute; then none does. Whoever wants
// it and confirms it has the only key; whoever puts it off keeps the one before.
func TestUnconfirmedKey(t *testing.T) {
	m := provisionedMachine(t, nil)
	first := m.recoveryKey()
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1})
	for start := range 4 {
		m.printed.Reset()
		m.waits, m.typed = nil, nil
		m.ends("system")
		if offered := strings.Contains(m.printed.String(), "NOBODY HAS SHOWN"); offered != (start < 2) || m.recoveries() != 1 || !m.opens(first) {
			t.Errorf("start %d: offered %t, %d keys:\n%s", start, offered, m.recoveries(), m.printed.String())
		}
	}
	if n := m.note(); !n.Unconfirmed || n.Shown != keynote.MaxShown || n.Keep != 0 {
		t.Errorf("%+v", n)
	}

	// The running system asks; it is put off, and asked for again.
	m.notes(keynote.Note{Unconfirmed: true, Shown: keynote.MaxShown, Wanted: true})
	m.typed = []string{"", ""}
	m.ends("system")
	second := m.recoveryKey()
	if second == first || m.opens(second) || !m.opens(first) || m.recoveries() != 1 || m.note().Wanted || !m.note().Unconfirmed {
		t.Errorf("put off: %d keys, %+v:\n%s", m.recoveries(), m.note(), m.printed.String())
	}
	m.ends("system") // asked once
	if m.recoveryKey() != second {
		t.Error("a key is shown that nobody has asked for")
	}
	m.notes(keynote.Note{Wanted: true})
	m.echo, m.typed = true, []string{""}
	m.ends("system")
	m.echo = false
	third := m.recoveryKey()
	if m.opens(first) || m.opens(second) || !m.opens(third) || m.recoveries() != 1 || !m.note().Nothing() {
		t.Errorf("confirmed: %d keys, %+v:\n%s", m.recoveries(), m.note(), m.printed.String())
	}
	m.opensByItself()
}

// Whoever declines, or is not there, sees no key, and nothing is changed but that it was
// asked for.
func TestNewKeyDeclined(t *testing.T) {
	for name, typed := range map[string][]string{"nobody": nil, "no": {"n"}} {
		m := provisionedMachine(t, nil)
		first := m.recoveryKey()
		m.notes(keynote.Note{Wanted: true})
		m.typed = typed
		m.ends("system")
		if m.recoveryKey() != first || !m.opens(first) || m.recoveries() != 1 || !m.note().Nothing() {
			t.Errorf("%s: %d keys, %+v", name, m.recoveries(), m.note())
		}
	}
}

// The recovery key that is typed is one that somebody has.
func TestTypedKeyIsConfirmed(t *testing.T) {
	m := inConsole(t, newFirmware)
	m.notes(keynote.Note{Unconfirmed: true, Shown: 2})
	if end := m.startsTyped("y"); end != "system" || !m.note().Nothing() {
		t.Errorf("ends in %s, %+v", end, m.note())
	}
}

// Cut anywhere, the key before or the new one opens, and after the next start it alone:
// the new one once its owner has confirmed it.
func TestNewKeyCut(t *testing.T) {
	m := provisionedMachine(t, nil)
	first := m.recoveryKey()
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1})
	m.typed, m.echo = []string{""}, true
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	fresh := m.recoveryKey()
	olds := 0
	for _, s := range states {
		m.powerOn(s.world)
		m.typed, m.echo = nil, false
		if !m.opens(first) && !m.opens(fresh) {
			t.Fatalf("%s: no recovery key opens", s.how)
		}
		m.ends("system")
		old := m.opens(first)
		if old == m.opens(fresh) || m.recoveries() != 1 {
			t.Fatalf("%s: the old key opens: %t, %d keys, %+v", s.how, old, m.recoveries(), m.note())
		}
		if old {
			olds++
		} else if m.note().Unconfirmed {
			t.Errorf("%s: the new key counts as not confirmed", s.how)
		}
	}
	if olds == 0 || olds == len(states) {
		t.Errorf("the old key opens after %d of %d cuts", olds, len(states))
	}
}
