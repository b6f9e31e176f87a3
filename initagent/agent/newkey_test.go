package agent

import (
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootlock"
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
	_, lock, err := rootlock.Look(s, s.Size())
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
	if n := m.note(); !n.Unconfirmed || n.Shown != keynote.MaxShown || n.Keep != "" {
		t.Errorf("%+v", n)
	}

	// The running system asks; it is put off, and asked for again.
	m.notes(keynote.Note{Unconfirmed: true, Shown: keynote.MaxShown, Wanted: true})
	m.typed = []string{"y", ""}
	m.ends("system")
	second := m.recoveryKey()
	if !m.note().Void || !strings.Contains(m.printed.String(), "IS NOT IN FORCE") {
		t.Errorf("who has written it down is not told that it opens nothing: %+v:\n%s", m.note(), m.printed.String())
	}
	if second == first || m.opens(second) || !m.opens(first) || m.recoveries() != 1 || m.note().Wanted || !m.note().Unconfirmed {
		t.Errorf("put off: %d keys, %+v:\n%s", m.recoveries(), m.note(), m.printed.String())
	}
	m.ends("system") // asked once
	if m.recoveryKey() != second {
		t.Error("a key is shown that nobody has asked for")
	}
	m.notes(keynote.Note{Wanted: true})
	m.echo, m.typed = true, []string{"y"}
	m.ends("system")
	m.echo = false
	third := m.recoveryKey()
	if n := m.note(); m.opens(first) || m.opens(second) || !m.opens(third) || m.recoveries() != 1 || n.Unconfirmed || n.Void || n.Replaced != keynote.Day(m.clock) {
		t.Errorf("confirmed: %d keys, %+v:\n%s", m.recoveries(), n, m.printed.String())
	}
	if !slices.Contains(m.kinds(), journal.NewKey) {
		t.Errorf("the boot journal has %q", m.kinds())
	}
	m.opensByItself()
}

// Whoever declines, or is not there, sees no key, and nothing is changed but that it was
// asked for. Where nobody is there, somebody has lost the key: that is told on.
func TestNewKeyDeclined(t *testing.T) {
	for name, typed := range map[string][]string{"nobody": nil, "no": {"n"}, "Enter": {""}} {
		m := provisionedMachine(t, nil)
		first := m.recoveryKey()
		m.notes(keynote.Note{Wanted: true})
		m.typed = typed
		m.ends("system")
		if m.recoveryKey() != first || !m.opens(first) || m.recoveries() != 1 || m.note().Nothing() != (typed != nil) || m.note().Due() {
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

// Unasked no key is shown on a machine that somebody uses.
func TestNoKeyForPassersBy(t *testing.T) {
	m := provisionedMachine(t, nil)
	first := m.recoveryKey()
	m.rootFiles()["bind/home/ann/.profile"] = nil
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1})
	m.echo, m.typed = true, []string{"y"}
	m.ends("system")
	if m.recoveryKey() != first || len(m.typed) != 1 || !m.note().Unconfirmed {
		t.Errorf("a key is shown, %+v:\n%s", m.note(), m.printed.String())
	}
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1, Wanted: true})
	m.ends("system")
	if m.recoveryKey() == first || m.note().Unconfirmed {
		t.Errorf("asked for, %+v:\n%s", m.note(), m.printed.String())
	}
}

// unplugged is a machine whose power went while a new key was on the screen.
func unplugged(t *testing.T) (m *machine, first, fresh string) {
	t.Helper()
	m = provisionedMachine(t, nil)
	first = m.recoveryKey()
	m.notes(keynote.Note{Wanted: true})
	m.pulled, m.typed = "Press Enter when you have written it down", []string{"y"}
	if end := m.boot(); end != "death" || !m.opens(m.recoveryKey()) || !m.opens(first) {
		t.Fatalf("ends in %s, %d keys:\n%s", end, m.recoveries(), m.printed.String())
	}
	m.pulled = ""
	m.printed.Reset()
	return m, first, m.recoveryKey()
}

// Whoever was writing a key down when the power went is told at the next start that it
// opens nothing, and by the running system from then on.
func TestNewKeyUnplugged(t *testing.T) {
	m, first, fresh := unplugged(t)
	m.ends("system")
	if !m.opens(first) || m.opens(fresh) || !strings.Contains(m.printed.String(), "IS NOT IN FORCE") || !strings.Contains(m.note().Warning(m.clock), "throw away") {
		t.Errorf("the key before opens: %t, %+v:\n%s", m.opens(first), m.note(), m.printed.String())
	}
	m.opensByItself()
}

// A key that opened the machine stays, and the other one goes, whichever the note of before
// was for.
func TestTypedKeyStays(t *testing.T) {
	for name, freshTyped := range map[string]bool{"the new one": true, "the one before": false} {
		m, first, fresh := unplugged(t)
		typed := first
		if freshTyped {
			typed = fresh
		}
		m.extra = "firmware update"
		m.typed = []string{typed, "y"}
		m.ends("system")
		if !m.opens(typed) || m.note().Unconfirmed {
			t.Fatalf("%s: %+v:\n%s", name, m.note(), m.printed.String())
		}
		m.printed.Reset()
		m.typed = nil
		m.ends("system")
		if m.opens(fresh) != freshTyped || m.opens(first) == freshTyped || strings.Contains(m.printed.String(), "IS NOT IN FORCE") == freshTyped {
			t.Errorf("%s was typed: the new one opens %t, the one before %t, %+v:\n%s", name, m.opens(fresh), m.opens(first), m.note(), m.printed.String())
		}
	}
}

// Cut anywhere, the key before or the new one opens, and after the next start it alone:
// the new one once its owner has confirmed it.
func TestNewKeyCut(t *testing.T) {
	m := provisionedMachine(t, nil)
	first := m.recoveryKey()
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1})
	m.typed, m.echo = []string{"y"}, true
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
		if m.note().Void && !m.opens(fresh) {
			t.Errorf("%s: whoever has written nothing down is told to throw it away: %+v", s.how, m.note())
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

// addsKey has the machine have one more recovery key, as a cut in the console leaves one.
func (m *machine) addsKey() {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	key, err := luks2.NewRecoveryKey(m.random)
	m.must(err)
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	m.must(lock.AddRecovery(m.random, s, volumeKey, secret, &key, luks2.Argon2id(64<<10, 1)))
}

// A machine with several recovery keys gets a new one that is the only one, once it is
// confirmed; put off, or unplugged, it goes, and those before stay.
func TestNewKeyOfSeveral(t *testing.T) {
	for _, how := range []string{"confirmed", "put off", "unplugged"} {
		t.Run(how, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			first := m.recoveryKey()
			m.addsKey()
			m.notes(keynote.Note{Wanted: true})
			m.typed = []string{"y"}
			switch how {
			case "confirmed":
				m.echo = true
			case "put off":
				m.typed = append(m.typed, "")
			case "unplugged":
				m.pulled = "Press Enter when you have written it down"
				if end := m.boot(); end != "death" || m.recoveries() != 3 {
					t.Fatalf("ends in %s, %d keys", end, m.recoveries())
				}
				m.pulled = ""
			}
			m.ends("system")
			fresh, keys := m.recoveryKey(), 2
			if how == "confirmed" {
				keys = 1
			}
			if m.opens(fresh) != (keys == 1) || m.opens(first) != (keys == 2) || m.recoveries() != keys || m.note().Void != (keys == 2) || m.note().Drop != "" {
				t.Errorf("%d keys, %+v:\n%s", m.recoveries(), m.note(), m.printed.String())
			}
			if !strings.Contains(m.printed.String(), "This machine has 2 recovery keys") {
				t.Errorf("it does not say how many there are:\n%s", m.printed.String())
			}
		})
	}
}
