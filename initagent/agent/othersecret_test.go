package agent

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

const otherSecret = "does not open the Secure Boot keys that the firmware enforces"

// bindToOwn is what root of the running system can do who has read the volume key: it
// opens by a secret of theirs, which the TPM releases to the chosen system.
func (m *machine) bindToOwn(record func(*policy.Record)) *policy.Secret {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	secret.Wipe()
	theirs, err := policy.NewSecret(m.random)
	m.must(err)
	boot, sealed := m.sealForAttacker(theirs)
	if record == nil {
		sealed, err = tpm.OpenTransport(m.emulator).SealPCR(theirs, policy.WithoutPrograms(), boot)
		m.must(err)
	} else {
		r := &policy.Record{Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}}}
		record(r)
		key, err := theirs.WriteKey()
		m.must(err)
		if !r.Provisional() { // as it is when it was sealed
			m.must(tpm.OpenTransport(m.emulator).WriteRecord(sealed.NVIndex, key, r))
		}
	}
	m.chipChanged = true
	text, err := sealed.Encode()
	m.must(err)
	m.changeToken(func(c *luks2.Change, number int, token luks2.Token) error {
		n, err := c.AddKeyslot(volumeKey, theirs.LUKSPassphrase(), luks2.PBKDF2())
		if err != nil {
			return err
		}
		token.Fields["sealed"], token.Keyslots = text, []int{n} // and the owner signature stays
		return c.SetToken(number, token)
	})
	return theirs
}

// theirKeys wraps keys of root's own by a secret of their own.
func (m *machine) theirKeys(theirs *policy.Secret) []byte {
	m.t.Helper()
	sets, err := keySets()
	m.must(err)
	keys := sets[(m.keysNo+1)%len(sets)]
	wrapped, err := firstboot.WrapKeys(m.random, theirs, keys, secureboot.NewList(keys, secureboot.Vendor{}))
	m.must(err)
	return wrapped
}

// theirOld wraps them as keys that give way.
func (m *machine) theirOld(theirs *policy.Secret) []byte {
	m.t.Helper()
	sets, err := keySets()
	m.must(err)
	key := theirs.Key("superseded-keys")
	wrapped, err := secureboot.Wrap(m.random, key, "superseded-keys", sets[(m.keysNo+1)%len(sets)])
	m.must(err)
	return wrapped
}

// box puts a file of root's own into the place of one that only a secret can write.
func (m *machine) box(theirs *policy.Secret, name, purpose string, content map[string]any) {
	m.t.Helper()
	text, err := json.Marshal(content)
	m.must(err)
	m.rootFiles()[name], err = theirs.Box(m.random, purpose, text)
	m.must(err)
}

// Root of the running system has read the volume key, and has the TPM release a secret of
// their own to an old system that was replaced for good. The owner signature is right, and
// nothing opens by itself: the floor stays, in the TPM and in the note. FAULTS 62, 91
func TestSecretOfTheirOwn(t *testing.T) {
	full := func(*policy.Record) {}
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	m.rename("test_1+0.efi", "test_1.efi")
	m.byHand = 1
	replaced := m.world(true, nil)
	for name, c := range map[string]struct {
		record func(*policy.Record)
		plant  func(m *machine, theirs *policy.Secret)
	}{
		"with a record":             {full, nil},
		"with a provisional record": {func(r *policy.Record) { r.Volume = [32]byte{} }, nil},
		"without one":               {nil, nil},
		"with keys of theirs":       {full, func(m *machine, theirs *policy.Secret) { m.rootFiles()[rootpart.ListFile] = m.theirKeys(theirs) }},
		"with keys of an earlier release's": {full, func(m *machine, theirs *policy.Secret) {
			var err error
			m.rootFiles()[rootpart.KeysFile], _, err = secureboot.SplitList(m.theirKeys(theirs))
			m.must(err)
		}},
		"with the next secret's keys": {full, func(m *machine, theirs *policy.Secret) {
			m.box(theirs, rootpart.NextFile, "next-secret", map[string]any{"format": 1, "list": m.theirKeys(theirs), "guarantees": []byte{}})
		}},
		"with superseded keys": {full, func(m *machine, theirs *policy.Secret) {
			m.box(theirs, rootpart.NextKeysFile, "next-keys", map[string]any{"format": 2, "for": "00", "old": m.theirOld(theirs)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.powerOn(replaced)
			m.agent.Contract = m.releases[1].contract
			theirs := m.bindToOwn(c.record)
			if c.plant != nil {
				c.plant(m, theirs)
			}
			files := maps.Clone(m.rootFiles())
			m.printed.Reset()
			m.ops, m.typed = nil, []string{m.recoveryKey()}
			m.said.Reset()
			if end := m.boot(); end != "reboot" { // the system is condemned
				t.Errorf("ends in %s", end)
			}
			said := m.said.String()
			if !strings.Contains(said, otherSecret) || !strings.Contains(said, "it was replaced for good") || !strings.Contains(m.printed.String(), "Recovery key") {
				t.Errorf("the TPM was not asked, or nobody was:\n%s\n%s", m.printed.String(), said)
			}
			if m.openVolume != nil || len(m.written("write index")) > 0 {
				t.Errorf("it is open, or was written: %q", m.ops)
			}
			for _, name := range []string{rootpart.GuaranteesFile, rootpart.ListFile} {
				if string(m.rootFiles()[name]) != string(files[name]) {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

// Somebody knows an earlier machine secret: they put the header of its time back and define
// its index again, with the same Name and a record of their own. The file with the Secure
// Boot keys is under the new secret, and the machine asks. FAULTS 91, 100
func TestOldSecretBindsNothing(t *testing.T) {
	m := provisionedMachine(t, nil)
	lock, volumeKey, old := m.unlocked()
	area := m.headerArea()
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false))
	m.works(r.Lock())
	m.opensByItself()
	part, err := m.partition(layout.RootNumber)
	m.must(err)
	_, err = part.WriteAt(area, 0)
	m.must(err)
	m.must(part.Sync())
	m.redefine(lock, volumeKey, old)
	m.printed.Reset()
	m.ends("recovery", otherSecret)
	if m.openVolume != nil || !strings.Contains(m.printed.String(), "Recovery key") {
		t.Errorf("it is open, or asks %q", m.printed.String())
	}
	// The recovery key still opens the data, by the header that is there.
	m.typed = []string{m.recoveryKey()}
	m.ends("system", otherSecret)
}

// redefine gives the TPM an index that was deleted again: its Name depends on nothing but
// the handle and the key that writes it.
func (m *machine) redefine(lock *rootlock.Lock, volumeKey []byte, secret *policy.Secret) {
	m.t.Helper()
	boot, mine := m.sealForAttacker(secret)
	if mine.NVIndex != lock.Sealed.NVIndex {
		m.t.Fatalf("defined %#x, the header names %#x: this proves nothing", mine.NVIndex, lock.Sealed.NVIndex)
	}
	key, err := secret.WriteKey()
	m.must(err)
	m.must(tpm.OpenTransport(m.emulator).WriteRecord(mine.NVIndex, key, &policy.Record{
		Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
	}))
	m.chipChanged = true
}

// The keys are lost from the root partition: its data opens by the recovery key, and what
// could not be read is said.
func TestKeysLost(t *testing.T) {
	m := provisionedMachine(t, nil)
	intact := m.world(true, nil)
	m.unreadableFile = rootpart.ListFile
	m.ends("recovery", otherSecret, "input/output error")
	m.powerOn(intact)
	m.unreadableFile = ""
	m.opensByItself()
	delete(m.rootFiles(), rootpart.ListFile)
	m.typed = []string{m.recoveryKey()}
	m.ends("system", otherSecret, "The recovery key opens your data")
}

// `reseal` is the way out that such a machine is told: it opens by itself afterwards, and
// the keyslot that is not its own goes.
func TestResealEndsSecretOfTheirOwn(t *testing.T) {
	for name, spoil := range map[string]func(m *machine){
		"another's secret": func(m *machine) { m.bindToOwn(func(*policy.Record) {}) },
		"a header without a TPM": func(m *machine) {
			m.bindToOwn(nil)
			m.powerOn(m.world(true, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, pinned)
			spoil(m)
			r, c := m.asked()
			m.types("y", "weaker")
			m.works(r.Reseal(c))
			m.works(r.Lock())
			m.opensByItself()
			m.opensByItself()
			lock, volumeKey, secret := m.unlocked()
			luks2.Wipe(volumeKey)
			secret.Wipe()
			if n := len(lock.Header.Keyslots()); n != 2 || lock.Replaced {
				t.Errorf("%d keyslots, and one to be removed: %v", n, lock.Replaced)
			}
		})
	}
}
