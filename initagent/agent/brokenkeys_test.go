package agent

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/cures"
	"halogenos.internal/initagent/rootpart"
)

// The list is damaged in the middle of a change. It says which keys are whose, so nothing
// goes on by itself; the machine starts, says what to do, and the way out leads to the new
// keys.
func TestNewKeysListDamaged(t *testing.T) {
	m, old, states := beganKeys(t)
	for taken := range 4 {
		m.powerOn(stoppedAt(m, old, states, taken))
		m.damageList()
		m.runs(1)
		if !strings.Contains(m.said.String(), "clear the Secure Boot keys in the firmware's setup") {
			t.Errorf("%d taken: it does not say what to do:\n%s", taken, m.said.String())
		}
		m.setupMode()
		r, c := m.asked()
		m.types("y")
		m.refuses(r.Enroll(c), "the boot alone can finish that")
		m.works(r.Lock())
		m.owner = true
		m.ends("system")
		m.owner = false
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// A note that another release has written is as good as none once the firmware has the new
// PK. Before, it stays for the system that can go on by it, and there is a way out.
func TestNewKeysOtherNote(t *testing.T) {
	m, old, states := beganKeys(t)
	for taken := range 4 {
		m.powerOn(stoppedAt(m, old, states, taken))
		box := m.otherNote(1)
		if taken > 0 {
			m.opensByItself()
			m.must(m.replaced(old))
			continue
		}
		m.runs(1, "clear the Secure Boot keys in the firmware's setup")
		if !bytes.Equal(m.rootFiles()[rootpart.NextKeysFile], box) {
			t.Error("it was changed")
		}
		unfinished := m.world(true, nil)
		m.otherNote(2)
		m.opensByItself()
		m.must(m.replaced(old))
		m.powerOn(unfinished)
		m.setupMode()
		m.owner = true
		m.ends("system")
		m.owner = false
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// otherNote gives the note of the superseded keys another format, and returns it.
func (m *machine) otherNote(format int) []byte {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	defer secret.Wipe()
	text, err := secret.Unbox("next-keys", m.rootFiles()[rootpart.NextKeysFile])
	m.must(err)
	at := bytes.IndexByte(text, ',')
	box, err := secret.Box(rand.Reader, "next-keys", append(fmt.Appendf(nil, `{"format":%d`, format), text[at:]...))
	m.must(err)
	m.rootFiles()[rootpart.NextKeysFile] = box
	return box
}

// What the console says to do about keys that the firmware has lost is not refused, in any
// state that looks so from outside: also in the middle of a change of the keys whose list
// is damaged, or whose note another release has written.
func TestCuresOfLostKeys(t *testing.T) {
	m, old, states := beganKeys(t)
	for _, c := range []struct {
		name  string
		state *world
		harm  func()
	}{
		{"nothing else", states[0].world, func() {}},
		{"none taken", stoppedAt(m, old, states, 0), func() {}},
		{"none taken, and the list damaged", stoppedAt(m, old, states, 0), m.damageList},
		{"two taken, and the list damaged", stoppedAt(m, old, states, 2), m.damageList},
		{"none taken, and another note", stoppedAt(m, old, states, 0), func() { m.otherNote(1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.powerOn(c.state)
			m.typed = nil
			c.harm()
			m.setupMode()
			m.typed = []string{""}
			m.ends("recovery")
			cure := cures.For(m.agent.State, m.agent.stopped())[0]
			if !strings.Contains(m.said.String(), cure) || !strings.Contains(cure, "lost its Secure Boot keys") {
				t.Fatalf("the console says\n%s", m.said.String())
			}
			r, cons := m.console()
			for _, command := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(cure, -1) {
				switch command[1] {
				case "unlock":
					m.types(m.recoveryKey())
					m.works(r.Unlock(cons))
				case "enroll":
					m.types("y")
					m.works(r.Enroll(cons))
				case "exit":
					m.works(r.Lock())
					m.owner = true
					m.ends("system")
					m.owner = false
				default:
					t.Errorf("%s is recommended", command[1])
				}
			}
			m.opensByItself()
			if m.vars["SecureBoot"].data[0] != 1 {
				t.Error("Secure Boot is off")
			}
		})
	}
}
