package agent_test

import (
	"strings"
	"testing"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// Nothing has room while the Secure Boot keys are replaced: the root partition, the ESP, or
// the firmware's variables. The message names what is full, the machine starts by itself
// all the same, and once there is room it has the new keys whole or the old ones whole.
// FAULTS 82, 100
func TestNewKeysFull(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	good := m.World(true, nil)
	file := func(name string) func() { return func() { m.FullFile = name } }
	variable := func(name string) func() { return func() { m.FullFor = name } }
	for _, c := range []struct {
		name string
		fill func()
		says string
	}{
		{"the root partition", func() { m.FullRoot = true }, "the root partition is full"},
		{"the root partition, for the next secret's file", file(rootpart.NextFile), "the root partition is full"},
		{"the root partition, for the list", file(rootpart.ListFile), "the root partition is full"},
		{"the root partition, for the superseded keys", file(rootpart.NextKeysFile), "the root partition is full"},
		{"the root partition, for the note", file(rootpart.GuaranteesFile), "the root partition is full"},
		{"the ESP", func() { m.ESP.Taken = 1<<30 - 4096 }, "the ESP is too full"},
		{"the ESP at once", func() { m.ESP.Full = true }, "write EFI/Linux/HALOGEN.NEW: no space left on device"},
		{"the firmware, for PK", variable("PK"), "did not take PK in 3 attempts: the firmware says out of resources"},
		{"the firmware, for KEK", variable("KEK"), "did not take KEK in 3 attempts: the firmware says out of resources"},
		{"the firmware, for db", variable("db"), "did not take db in 3 attempts: the firmware says out of resources"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.T = t
			m.PowerOn(good)
			m.KeysNo = m.SetNumber(old)
			empty := func() {
				m.FullRoot, m.FullFile, m.FullFor = false, "", ""
				m.ESP.Taken, m.ESP.Full = 0, false
			}
			defer empty()
			m.FullFor = ""
			r, cons := m.Asked()
			c.fill()
			r.Variables.(*machinetest.Firmware).Full = m.FullFor
			m.Types("y", m.RecoveryKey())
			err := r.NewSecret(cons, true)
			said := m.Printed.String()
			if err != nil {
				said += err.Error()
			}
			m.Works(r.Lock())
			m.OpensByItself() // still full
			said += m.Said.String()
			if !strings.Contains(said, c.says) {
				t.Errorf("it does not name what is full, %q:\n%s", c.says, said)
			}
			if strings.Contains(c.says, "root partition") && strings.Contains(said, "clear the Secure Boot keys") {
				t.Errorf("it says to clear the firmware's keys, and a partition is full:\n%s", said)
			}
			empty()
			m.OpensByItself()
			m.OpensByItself()
			now, err := m.EnrolledSet()
			m.Must(err)
			if now.DB.Certificate.Equal(old.DB.Certificate) {
				m.Must(keysWhole(m, old))
			} else {
				m.Must(m.Replaced(old))
			}
		})
	}
}

// keysWhole reports what a machine with these keys has of a change to others.
func keysWhole(m *machinetest.Machine, keys *secureboot.KeySet) error {
	m.T.Helper()
	if m.KeysUnfinished() {
		m.T.Errorf("the change has not ended:\n%s", m.Said.String())
	}
	if taken := m.World(true, nil).Taken(keys); taken > 0 {
		m.T.Errorf("the firmware has %d other keys", taken)
	}
	return m.OneSecret()
}
