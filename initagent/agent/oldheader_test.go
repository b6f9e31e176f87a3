package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
)

// renewed makes a new machine secret at the console, with new Secure Boot keys or without.
func (m *machine) renewed(keys bool) {
	m.t.Helper()
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, keys))
	m.works(r.Lock())
	m.opensByItself()
	m.opensByItself()
}

// unsigned makes the header one of a release that made no owner signature.
func (m *machine) unsigned() {
	m.t.Helper()
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		if len(token.Fields["deed"]) == 0 {
			return errors.New("it has no owner signature: this proves nothing")
		}
		delete(token.Fields, "deed")
		return c.SetToken(n, token)
	})
}

// An older header is put back, or is of an earlier release, and the firmware has lost its
// keys. The console's enroll gives it those that count, or says why it cannot and what to
// do; so does a start by the recovery key. The data can be read in each case.
func TestEnrollByOlderHeader(t *testing.T) {
	const ways = "put that back. Otherwise save what is on the root partition"
	for _, c := range []struct {
		name    string
		change  func(m *machine)
		putBack bool
		fails   string // of unlock or enroll; empty: both work
	}{
		{"of before a new secret", func(m *machine) { m.renewed(false) }, true, ways},
		{"of before new keys", func(m *machine) { m.renewed(true) }, true, ways},
		{"of now", func(*machine) {}, true, ""},
		{"without an owner signature", (*machine).unsigned, false, "save your data, and `reset` the machine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			header := m.headerArea()
			c.change(m)
			if c.putBack {
				part, err := m.partition(layout.RootNumber)
				m.must(err)
				_, err = part.WriteAt(header, 0)
				m.must(errors.Join(err, part.Sync()))
			}
			m.setupMode()
			m.typed = []string{""}
			m.ends("recovery")
			r, cons := m.console()
			m.types(m.recoveryKey(), "y")
			err := r.Unlock(cons)
			if err == nil {
				err = r.Enroll(cons)
			}
			switch {
			case c.fails != "":
				m.refuses(err, c.fails)
			default:
				m.works(err, "The keys are enrolled")
			}
			if c.fails != "" && len(m.vars["PK"].data) > 0 {
				t.Error("it was refused, and the firmware has keys")
			}
			m.works(r.Lock())
			m.printed.Reset()
			m.said.Reset()
			m.owner = true
			end := m.run()
			m.owner = false
			said := fmt.Sprintf("%s%s", m.printed.String(), m.said.String())
			if c.fails != "" && !strings.Contains(said, c.fails) || c.fails == "" && (end != "system" || m.vars["SecureBoot"].data[0] != 1) {
				t.Errorf("the start after it ends in %s, and says:\n%s", end, said)
			}
		})
	}
}
