package agent

import (
	"strings"
	"testing"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/rootpart"
)

// Nothing has room while the Secure Boot keys are replaced: the root partition, the ESP, or
// the firmware's variables. The message names what is full, the machine starts by itself
// all the same, and once there is room it has the new keys whole or the old ones whole.
// FAULTS 82, 100
func TestNewKeysFull(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	good := m.world(true, nil)
	file := func(name string) func() { return func() { m.fullFile = name } }
	variable := func(name string) func() { return func() { m.fullFor = name } }
	for _, c := range []struct {
		name string
		fill func()
		says string
	}{
		{"the root partition", func() { m.fullRoot = true }, "the root partition is full"},
		{"the root partition, for the next secret's file", file(rootpart.NextFile), "the root partition is full"},
		{"the root partition, for the list", file(rootpart.ListFile), "the root partition is full"},
		{"the root partition, for the superseded keys", file(rootpart.NextKeysFile), "the root partition is full"},
		{"the root partition, for the note", file(rootpart.GuaranteesFile), "the root partition is full"},
		{"the ESP", func() { m.esp.taken = 1<<30 - 4096 }, "the ESP is too full"},
		{"the ESP at once", func() { m.esp.full = true }, "write EFI/Linux/HALOGEN.NEW: no space left on device"},
		{"the firmware, for PK", variable("PK"), "did not take PK in 3 attempts: the firmware says out of resources"},
		{"the firmware, for KEK", variable("KEK"), "did not take KEK in 3 attempts: the firmware says out of resources"},
		{"the firmware, for db", variable("db"), "did not take db in 3 attempts: the firmware says out of resources"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.powerOn(good)
			m.keysNo = m.setNumber(old)
			empty := func() {
				m.fullRoot, m.fullFile, m.fullFor = false, "", ""
				m.esp.taken, m.esp.full = 0, false
			}
			defer empty()
			m.fullFor = ""
			r, cons := m.asked()
			c.fill()
			r.Variables.(*firmware).full = m.fullFor
			m.types("y", m.recoveryKey())
			err := r.NewSecret(cons, true)
			said := m.printed.String()
			if err != nil {
				said += err.Error()
			}
			m.works(r.Lock())
			m.opensByItself() // still full
			said += m.said.String()
			if !strings.Contains(said, c.says) {
				t.Errorf("it does not name what is full, %q:\n%s", c.says, said)
			}
			if strings.Contains(c.says, "root partition") && strings.Contains(said, "clear the Secure Boot keys") {
				t.Errorf("it says to clear the firmware's keys, and a partition is full:\n%s", said)
			}
			empty()
			m.opensByItself()
			m.opensByItself()
			now, err := m.enrolledSet()
			m.must(err)
			if now.DB.Certificate.Equal(old.DB.Certificate) {
				m.must(m.keysWhole(old))
			} else {
				m.must(m.replaced(old))
			}
		})
	}
}

// keysWhole reports what a machine with these keys has of a change to others.
func (m *machine) keysWhole(keys *secureboot.KeySet) error {
	m.t.Helper()
	if m.keysUnfinished() {
		m.t.Errorf("the change has not ended:\n%s", m.said.String())
	}
	if taken := m.world(true, nil).taken(keys); taken > 0 {
		m.t.Errorf("the firmware has %d other keys", taken)
	}
	return m.oneSecret()
}
