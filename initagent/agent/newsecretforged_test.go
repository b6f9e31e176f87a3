package agent

import (
	"bytes"
	"maps"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/rootpart"
)

// The file of a new secret that never came into force is anybody's: what is in place
// stays, and the index of the header.
func TestForgedNextSecret(t *testing.T) {
	for _, text := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("x"), 1<<20)} {
		m := provisionedMachine(t, nil)
		m.rootFiles()[rootpart.NextFile] = text
		m.opensByItself()
		m.must(m.oneSecret())
	}
	// One that fits, and is late: what the secret has written since stays.
	m := provisionedMachine(t, nil)
	lock, _, secret := m.unlocked()
	m.must((&rootpart.Replacement{Old: secret, Fresh: secret}).Prepare(store{m}, m.random, lock, rootpart.Guarantees{Format: 1}))
	before := maps.Clone(m.rootFiles())
	m.opensByItself()
	m.must(m.oneSecret())
	for _, name := range []string{rootpart.ListFile, rootpart.GuaranteesFile} {
		if !bytes.Equal(m.rootFiles()[name], before[name]) {
			t.Errorf("%s was put back", name)
		}
	}
	// A file that cannot be read now is not replaced.
	m.must((&rootpart.Replacement{Old: secret, Fresh: secret}).Prepare(store{m}, m.random, lock, rootpart.Guarantees{Format: 1}))
	m.unreadableFile = rootpart.ListFile
	m.ends("system", "goes on with it: input/output error")
	m.unreadableFile = rootpart.NextFile
	if m.ends("system", "goes on with it: input/output error"); m.agent.List == nil || m.agent.List.Bare || !m.agent.Unsettled {
		t.Error("the list was not read, or counts as settled")
	}
	m.unreadableFile = ""
	if !bytes.Equal(m.rootFiles()[rootpart.ListFile], before[rootpart.ListFile]) || m.rootFiles()[rootpart.NextFile] == nil {
		t.Error("the list was put back, or what could not be looked at is gone")
	}
	// What cannot be told is left: one of both is damaged.
	m = provisionedMachine(t, nil)
	m.rootFiles()[rootpart.NextFile] = []byte("x")
	m.rootFiles()[rootpart.ListFile][100] ^= 1
	m.typed = []string{m.recoveryKey()}
	m.ends("system", otherSecret, "both are left as they are")
	if _, there := m.rootFiles()[rootpart.NextFile]; !there {
		t.Error("it is gone")
	}
}

// plantReplaced adds tokens that name the TPM's keyslot, and the recovery key's, as those of
// an earlier secret.
func (m *machine) plantReplaced() {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	m.must(lock.Header.Change(m.random, s, func(c *luks2.Change) error {
		for _, slots := range [][]int{{lock.TPMSlot}, {lock.TPMSlot, lock.Recoveries[0].Keyslot}, {}} {
			if _, err := c.AddToken(luks2.Token{Type: rootheader.ReplacedToken, Keyslots: slots}); err != nil {
				return err
			}
		}
		return nil
	}))
	m.must(s.Sync())
}

// Tokens that somebody with the disk has put there keep neither the earlier secret's
// keyslot nor its index, and take no keyslot that is in use.
func TestPlantedReplacedTokens(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.plantReplaced()
	m.opensByItself()
	m.must(m.oneSecret())

	old := m.machineSecret()
	r, c := m.asked()
	m.plantReplaced()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false))
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.oneSecret())
	if old.Equal(m.machineSecret()) {
		t.Error("the old secret is in force")
	}
}
