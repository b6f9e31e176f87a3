package agent_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/cures"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// The list is damaged in the middle of a change. It says which keys are whose, so nothing
// goes on by itself; the machine starts, says what to do, and the way out leads to the new
// keys.
func TestNewKeysListDamaged(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for taken := range 4 {
		m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
		m.DamageList()
		m.Runs(1)
		if !strings.Contains(m.Said.String(), "clear the Secure Boot keys in the firmware's setup") {
			t.Errorf("%d taken: it does not say what to do:\n%s", taken, m.Said.String())
		}
		m.SetupMode()
		r, c := m.Asked()
		m.Types("y")
		m.Refuses(r.Enroll(c), "the boot alone can finish that")
		m.Works(r.Lock())
		m.Owner = true
		m.Ends("system")
		m.Owner = false
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// A note that another release has written is as good as none once the firmware has the new
// PK. Before, it stays for the system that can go on by it, and there is a way out.
func TestNewKeysOtherNote(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for taken := range 4 {
		m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
		box := otherNote(m, 1)
		if taken > 0 {
			m.OpensByItself()
			m.Must(m.Replaced(old))
			continue
		}
		m.Runs(1, "clear the Secure Boot keys in the firmware's setup")
		if !bytes.Equal(m.RootFiles()[rootpart.NextKeysFile], box) {
			t.Error("it was changed")
		}
		unfinished := m.World(true, nil)
		otherNote(m, 2)
		m.OpensByItself()
		m.Must(m.Replaced(old))
		m.PowerOn(unfinished)
		m.SetupMode()
		m.Owner = true
		m.Ends("system")
		m.Owner = false
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// otherNote gives the note of the superseded keys another format, and returns it.
func otherNote(m *machinetest.Machine, format int) []byte {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	defer secret.Wipe()
	text, err := secret.Unbox("next-keys", m.RootFiles()[rootpart.NextKeysFile])
	m.Must(err)
	at := bytes.IndexByte(text, ',')
	box, err := secret.Box(rand.Reader, "next-keys", append(fmt.Appendf(nil, `{"format":%d`, format), text[at:]...))
	m.Must(err)
	m.RootFiles()[rootpart.NextKeysFile] = box
	return box
}

// What the console says to do about keys that the firmware has lost is not refused, in any
// state that looks so from outside: also in the middle of a change of the keys whose list
// is damaged, or whose note another release has written.
func TestCuresOfLostKeys(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for _, c := range []struct {
		name  string
		state *machinetest.World
		harm  func()
	}{
		{"nothing else", states[0].World, func() {}},
		{"none taken", machinetest.StoppedAt(m, old, states, 0), func() {}},
		{"none taken, and the list damaged", machinetest.StoppedAt(m, old, states, 0), m.DamageList},
		{"two taken, and the list damaged", machinetest.StoppedAt(m, old, states, 2), m.DamageList},
		{"none taken, and another note", machinetest.StoppedAt(m, old, states, 0), func() { otherNote(m, 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.T = t
			m.PowerOn(c.state)
			m.Typed = nil
			c.harm()
			m.SetupMode()
			m.Typed = []string{""}
			m.Ends("recovery")
			cure := cures.For(m.Agent.State, m.Agent.Stopped())[0]
			if !strings.Contains(m.Said.String(), cure) || !strings.Contains(cure, "lost its Secure Boot keys") {
				t.Fatalf("the console says\n%s", m.Said.String())
			}
			r, cons := m.Console()
			for _, command := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(cure, -1) {
				switch command[1] {
				case "unlock":
					m.Types(m.RecoveryKey())
					m.Works(r.Unlock(cons))
				case "enroll":
					m.Types("y")
					m.Works(r.Enroll(cons))
				case "exit":
					m.Works(r.Lock())
					m.Owner = true
					m.Ends("system")
					m.Owner = false
				default:
					t.Errorf("%s is recommended", command[1])
				}
			}
			m.OpensByItself()
			if m.Vars["SecureBoot"].Data[0] != 1 {
				t.Error("Secure Boot is off")
			}
		})
	}
}
