package agent

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/luks2"
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
