package agent_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/machinetest"
)

// An older header is put back, or is of an earlier release, and the firmware has lost its
// keys. The console's enroll gives it those that count, or says why it cannot and what to
// do; so does a start by the recovery key. The data can be read in each case.
func TestEnrollByOlderHeader(t *testing.T) {
	const ways = "put that back. Otherwise save what is on the root partition"
	for _, c := range []struct {
		name    string
		change  func(m *machinetest.Machine)
		putBack bool
		fails   string // of unlock or enroll; empty: both work
	}{
		{"of before a new secret", func(m *machinetest.Machine) { m.Renewed(false) }, true, ways},
		{"of before new keys", func(m *machinetest.Machine) { m.Renewed(true) }, true, ways},
		{"of now", func(*machinetest.Machine) {}, true, ""},
		{"without an owner signature", (*machinetest.Machine).Unsigned, false, "save your data, and `reset` the machine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			header := m.HeaderArea()
			c.change(m)
			if c.putBack {
				part, err := m.Partition(layout.Root)
				m.Must(err)
				_, err = part.WriteAt(header, 0)
				m.Must(errors.Join(err, part.Sync()))
			}
			m.SetupMode()
			m.Typed = []string{""}
			m.Ends("recovery")
			r, cons := m.Console()
			m.Types(m.RecoveryKey(), "y")
			err := r.Unlock(cons)
			if err == nil {
				err = r.Enroll(cons)
			}
			switch {
			case c.fails != "":
				m.Refuses(err, c.fails)
			default:
				m.Works(err, "The keys are enrolled")
			}
			if c.fails != "" && len(m.Vars["PK"].Data) > 0 {
				t.Error("it was refused, and the firmware has keys")
			}
			m.Works(r.Lock())
			m.Printed.Reset()
			m.Said.Reset()
			m.Owner = true
			end := m.Run()
			m.Owner = false
			said := fmt.Sprintf("%s%s", m.Printed.String(), m.Said.String())
			if c.fails != "" && !strings.Contains(said, c.fails) || c.fails == "" && (end != "system" || m.Vars["SecureBoot"].Data[0] != 1) {
				t.Errorf("the start after it ends in %s, and says:\n%s", end, said)
			}
		})
	}
}
