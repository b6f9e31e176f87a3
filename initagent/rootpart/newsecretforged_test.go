package rootpart_test

import (
	"bytes"
	"maps"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// The file of a new secret that never came into force is anybody's: what is in place
// stays, and the index of the header.
func TestForgedNextSecret(t *testing.T) {
	for _, text := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("x"), 1<<20)} {
		m := machinetest.ProvisionedMachine(t, nil)
		m.RootFiles()[rootpart.NextFile] = text
		m.OpensByItself()
		m.Must(m.OneSecret())
	}
	// One that fits, and is late: what the secret has written since stays.
	m := machinetest.ProvisionedMachine(t, nil)
	lock, _, secret := m.Unlocked()
	m.Must((&rootpart.Replacement{Old: secret, Fresh: secret}).Prepare(machinetest.Store{M: m}, m.Random, lock, rootpart.Guarantees{Format: 1}))
	before := maps.Clone(m.RootFiles())
	m.OpensByItself()
	m.Must(m.OneSecret())
	for _, name := range []string{rootpart.ListFile, rootpart.GuaranteesFile} {
		if !bytes.Equal(m.RootFiles()[name], before[name]) {
			t.Errorf("%s was put back", name)
		}
	}
	// A file that cannot be read now is not replaced.
	m.Must((&rootpart.Replacement{Old: secret, Fresh: secret}).Prepare(machinetest.Store{M: m}, m.Random, lock, rootpart.Guarantees{Format: 1}))
	m.UnreadableFile = rootpart.ListFile
	m.Ends("system", "goes on with it: input/output error")
	m.UnreadableFile = rootpart.NextFile
	if m.Ends("system", "goes on with it: input/output error"); m.Agent.List == nil || m.Agent.List.Bare || !m.Agent.Unsettled {
		t.Error("the list was not read, or counts as settled")
	}
	m.UnreadableFile = ""
	if !bytes.Equal(m.RootFiles()[rootpart.ListFile], before[rootpart.ListFile]) || m.RootFiles()[rootpart.NextFile] == nil {
		t.Error("the list was put back, or what could not be looked at is gone")
	}
	// What cannot be told is left: one of both is damaged.
	m = machinetest.ProvisionedMachine(t, nil)
	m.RootFiles()[rootpart.NextFile] = []byte("x")
	m.RootFiles()[rootpart.ListFile][100] ^= 1
	m.Typed = []string{m.RecoveryKey()}
	m.Ends("system", machinetest.OtherSecret, "both are left as they are")
	if _, there := m.RootFiles()[rootpart.NextFile]; !there {
		t.Error("it is gone")
	}
}

// plantReplaced adds tokens that name the TPM's keyslot, and the recovery key's, as those of
// an earlier secret.
func plantReplaced(m *machinetest.Machine) {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	m.Must(lock.Header.Change(m.Random, s, func(c *luks2.Change) error {
		for _, slots := range [][]int{{lock.TPMSlot}, {lock.TPMSlot, lock.Recoveries[0].Keyslot}, {}} {
			if _, err := c.AddToken(luks2.Token{Type: rootheader.ReplacedToken, Keyslots: slots}); err != nil {
				return err
			}
		}
		return nil
	}))
	m.Must(s.Sync())
}

// Tokens that somebody with the disk has put there keep neither the earlier secret's
// keyslot nor its index, and take no keyslot that is in use.
func TestPlantedReplacedTokens(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	plantReplaced(m)
	m.OpensByItself()
	m.Must(m.OneSecret())

	old := m.MachineSecret()
	r, c := m.Asked()
	plantReplaced(m)
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false))
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.OneSecret())
	if old.Equal(m.MachineSecret()) {
		t.Error("the old secret is in force")
	}
}
