package unlock_test

import (
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
)

// recoveries counts the recovery keys.
func recoveries(m *machinetest.Machine) int {
	m.T.Helper()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	_, lock, err := rootlock.Look(s, s.Size())
	m.Must(err)
	return len(lock.Recoveries)
}

// A first boot whose key nobody types back says so from then on, and the one that confirms
// it says nothing.
func TestFirstKeyConfirmed(t *testing.T) {
	for _, later := range []bool{false, true} {
		m := machinetest.New(t, nil)
		m.Later = later
		m.Ends("system")
		if n := m.Note(); n.Unconfirmed != later || later && n.Shown != 1 {
			t.Errorf("put off %t: %+v", later, n)
		}
	}
}

// Three starts offer another key, for a quarter of a minute; then none does. Anyone who wants
// it and confirms it has the only key; anyone who puts it off keeps the one before.
func TestUnconfirmedKey(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	first := m.RecoveryKey()
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1})
	for start := range 4 {
		m.Printed.Reset()
		m.Waits, m.Typed = nil, nil
		m.Ends("system")
		if offered := strings.Contains(m.Printed.String(), "NOBODY HAS SHOWN"); offered != (start < 2) || recoveries(m) != 1 || !m.Opens(first) {
			t.Errorf("start %d: offered %t, %d keys:\n%s", start, offered, recoveries(m), m.Printed.String())
		}
	}
	if n := m.Note(); !n.Unconfirmed || n.Shown != keynote.MaxShown || n.Keep != "" {
		t.Errorf("%+v", n)
	}

	// The running system asks; it is put off, and asked for again.
	m.Notes(keynote.Note{Unconfirmed: true, Shown: keynote.MaxShown, Wanted: true})
	m.Typed = []string{"y", ""}
	m.Ends("system")
	second := m.RecoveryKey()
	if !m.Note().Void || !strings.Contains(m.Printed.String(), "IS NOT IN FORCE") {
		t.Errorf("who has written it down is not told that it opens nothing: %+v:\n%s", m.Note(), m.Printed.String())
	}
	if second == first || m.Opens(second) || !m.Opens(first) || recoveries(m) != 1 || m.Note().Wanted || !m.Note().Unconfirmed {
		t.Errorf("put off: %d keys, %+v:\n%s", recoveries(m), m.Note(), m.Printed.String())
	}
	m.Ends("system") // asked once
	if m.RecoveryKey() != second {
		t.Error("a key is shown that nobody has asked for")
	}
	m.Notes(keynote.Note{Wanted: true})
	m.Echo, m.Typed = true, []string{"y"}
	m.Ends("system")
	m.Echo = false
	third := m.RecoveryKey()
	if n := m.Note(); m.Opens(first) || m.Opens(second) || !m.Opens(third) || recoveries(m) != 1 || n.Unconfirmed || n.Void || n.Replaced != keynote.Day(m.Clock) {
		t.Errorf("confirmed: %d keys, %+v:\n%s", recoveries(m), n, m.Printed.String())
	}
	if !slices.Contains(m.Kinds(), journal.NewKey) {
		t.Errorf("the boot journal has %q", m.Kinds())
	}
	m.OpensByItself()
}

// Anyone who declines, or is not there, sees no key, and nothing is changed but that it was
// asked for. Where nobody is there, somebody has lost the key: that is told on.
func TestNewKeyDeclined(t *testing.T) {
	for name, typed := range map[string][]string{"nobody": nil, "no": {"n"}, "Enter": {""}} {
		m := machinetest.ProvisionedMachine(t, nil)
		first := m.RecoveryKey()
		m.Notes(keynote.Note{Wanted: true})
		m.Typed = typed
		m.Ends("system")
		if m.RecoveryKey() != first || !m.Opens(first) || recoveries(m) != 1 || m.Note().Nothing() != (typed != nil) || m.Note().Due() {
			t.Errorf("%s: %d keys, %+v", name, recoveries(m), m.Note())
		}
	}
}

// The recovery key that is typed is one that somebody has.
func TestTypedKeyIsConfirmed(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 2})
	if end := m.StartsTyped("y"); end != "system" || !m.Note().Nothing() {
		t.Errorf("ends in %s, %+v", end, m.Note())
	}
}

// Unasked no key is shown on a machine that somebody uses.
func TestNoKeyForPassersBy(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	first := m.RecoveryKey()
	m.RootFiles()["bind/home/ann/.profile"] = nil
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1})
	m.Echo, m.Typed = true, []string{"y"}
	m.Ends("system")
	if m.RecoveryKey() != first || len(m.Typed) != 1 || !m.Note().Unconfirmed {
		t.Errorf("a key is shown, %+v:\n%s", m.Note(), m.Printed.String())
	}
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1, Wanted: true})
	m.Ends("system")
	if m.RecoveryKey() == first || m.Note().Unconfirmed {
		t.Errorf("asked for, %+v:\n%s", m.Note(), m.Printed.String())
	}
}

// unplugged is a machine whose power went while a new key was on the screen.
func unplugged(t *testing.T) (m *machinetest.Machine, first, fresh string) {
	t.Helper()
	m = machinetest.ProvisionedMachine(t, nil)
	first = m.RecoveryKey()
	m.Notes(keynote.Note{Wanted: true})
	m.Pulled, m.Typed = "Press Enter when you have written it down", []string{"y"}
	if end := m.Boot(); end != "death" || !m.Opens(m.RecoveryKey()) || !m.Opens(first) {
		t.Fatalf("ends in %s, %d keys:\n%s", end, recoveries(m), m.Printed.String())
	}
	m.Pulled = ""
	m.Printed.Reset()
	return m, first, m.RecoveryKey()
}

// Anyone who was writing a key down when the power went is told at the next start that it
// opens nothing, and by the running system from then on.
func TestNewKeyUnplugged(t *testing.T) {
	m, first, fresh := unplugged(t)
	m.Ends("system")
	if !m.Opens(first) || m.Opens(fresh) || !strings.Contains(m.Printed.String(), "IS NOT IN FORCE") || !strings.Contains(m.Note().Warning(m.Clock), "throw away") {
		t.Errorf("the key before opens: %t, %+v:\n%s", m.Opens(first), m.Note(), m.Printed.String())
	}
	m.OpensByItself()
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
		m.Extra = "firmware update"
		m.Typed = []string{typed, "y"}
		m.Ends("system")
		if !m.Opens(typed) || m.Note().Unconfirmed {
			t.Fatalf("%s: %+v:\n%s", name, m.Note(), m.Printed.String())
		}
		m.Printed.Reset()
		m.Typed = nil
		m.Ends("system")
		if m.Opens(fresh) != freshTyped || m.Opens(first) == freshTyped || strings.Contains(m.Printed.String(), "IS NOT IN FORCE") == freshTyped {
			t.Errorf("%s was typed: the new one opens %t, the one before %t, %+v:\n%s", name, m.Opens(fresh), m.Opens(first), m.Note(), m.Printed.String())
		}
	}
}

// Cut anywhere, the key before or the new one opens, and after the next start it alone:
// the new one once its owner has confirmed it.
func TestNewKeyCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	first := m.RecoveryKey()
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1})
	m.Typed, m.Echo = []string{"y"}, true
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	fresh := m.RecoveryKey()
	olds := 0
	for _, s := range states {
		m.PowerOn(s.World)
		m.Typed, m.Echo = nil, false
		if !m.Opens(first) && !m.Opens(fresh) {
			t.Fatalf("%s: no recovery key opens", s.How)
		}
		if m.Note().Void && !m.Opens(fresh) {
			t.Errorf("%s: a person who has written nothing down is told to throw it away: %+v", s.How, m.Note())
		}
		m.Ends("system")
		old := m.Opens(first)
		if old == m.Opens(fresh) || recoveries(m) != 1 {
			t.Fatalf("%s: the old key opens: %t, %d keys, %+v", s.How, old, recoveries(m), m.Note())
		}
		if old {
			olds++
		} else if m.Note().Unconfirmed {
			t.Errorf("%s: the new key counts as not confirmed", s.How)
		}
	}
	if olds == 0 || olds == len(states) {
		t.Errorf("the old key opens after %d of %d cuts", olds, len(states))
	}
}

// addsKey has the machine have one more recovery key, as a cut in the console leaves one.
func addsKey(m *machinetest.Machine) {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	key, err := luks2.NewRecoveryKey(m.Random)
	m.Must(err)
	s, err := m.Partition(layout.Root)
	m.Must(err)
	m.Must(lock.AddRecovery(m.Random, s, volumeKey, secret, &key, luks2.Argon2id(64<<10, 1)))
}

// A machine with several recovery keys gets a new one that is the only one, once it is
// confirmed; put off, or unplugged, it goes, and those before stay.
func TestNewKeyOfSeveral(t *testing.T) {
	for _, how := range []string{"confirmed", "put off", "unplugged"} {
		t.Run(how, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			first := m.RecoveryKey()
			addsKey(m)
			m.Notes(keynote.Note{Wanted: true})
			m.Typed = []string{"y"}
			switch how {
			case "confirmed":
				m.Echo = true
			case "put off":
				m.Typed = append(m.Typed, "")
			case "unplugged":
				m.Pulled = "Press Enter when you have written it down"
				if end := m.Boot(); end != "death" || recoveries(m) != 3 {
					t.Fatalf("ends in %s, %d keys", end, recoveries(m))
				}
				m.Pulled = ""
			}
			m.Ends("system")
			fresh, keys := m.RecoveryKey(), 2
			if how == "confirmed" {
				keys = 1
			}
			if m.Opens(fresh) != (keys == 1) || m.Opens(first) != (keys == 2) || recoveries(m) != keys || m.Note().Void != (keys == 2) || m.Note().Drop != "" {
				t.Errorf("%d keys, %+v:\n%s", recoveries(m), m.Note(), m.Printed.String())
			}
			if !strings.Contains(m.Printed.String(), "This machine has 2 recovery keys") {
				t.Errorf("it does not say how many there are:\n%s", m.Printed.String())
			}
		})
	}
}
