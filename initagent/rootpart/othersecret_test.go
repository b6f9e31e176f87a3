package rootpart_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// bindToOwn is what root of the running system can do who has read the volume key: it
// opens by a secret of theirs, which the TPM releases to the chosen system.
func bindToOwn(m *machinetest.Machine, record func(*policy.Record)) *policy.Secret {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	secret.Wipe()
	theirs, err := policy.NewSecret(m.Random)
	m.Must(err)
	boot, sealed := m.SealForAttacker(theirs)
	if record == nil {
		sealed, err = tpm.OpenTransport(m.Emulator).SealPCR(theirs, policy.WithoutPrograms(), boot)
		m.Must(err)
	} else {
		r := &policy.Record{Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}}}
		record(r)
		key, err := theirs.WriteKey()
		m.Must(err)
		if !r.Provisional() { // as it is when it was sealed
			m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(sealed.NVIndex, key, r))
		}
	}
	m.ChipChanged = true
	text, err := sealed.Encode()
	m.Must(err)
	m.ChangeToken(func(c *luks2.Change, number int, token luks2.Token) error {
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
func theirKeys(m *machinetest.Machine, theirs *policy.Secret) []byte {
	m.T.Helper()
	sets, err := machinetest.KeySets()
	m.Must(err)
	keys := sets[(m.KeysNo+1)%len(sets)]
	wrapped, err := firstboot.WrapKeys(m.Random, theirs, keys, secureboot.NewList(keys, secureboot.Vendor{}))
	m.Must(err)
	return wrapped
}

// theirOld wraps them as keys that give way.
func theirOld(m *machinetest.Machine, theirs *policy.Secret) []byte {
	m.T.Helper()
	sets, err := machinetest.KeySets()
	m.Must(err)
	key := theirs.Key("superseded-keys")
	wrapped, err := secureboot.Wrap(m.Random, key, "superseded-keys", sets[(m.KeysNo+1)%len(sets)])
	m.Must(err)
	return wrapped
}

// box puts a file of root's own into the place of one that only a secret can write.
func box(m *machinetest.Machine, theirs *policy.Secret, name, purpose string, content map[string]any) {
	m.T.Helper()
	text, err := json.Marshal(content)
	m.Must(err)
	m.RootFiles()[name], err = theirs.Box(m.Random, purpose, text)
	m.Must(err)
}

// Root of the running system has read the volume key, and has the TPM release a secret of
// their own to an old system that was replaced for good. The owner signature is right, and
// nothing opens by itself: the floor stays, in the TPM and in the note. FAULTS 62, 91
func TestSecretOfTheirOwn(t *testing.T) {
	full := func(*policy.Record) {}
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	m.Rename("test_1+0.efi", "test_1.efi")
	m.ByHand = 1
	replaced := m.World(true, nil)
	for name, c := range map[string]struct {
		record func(*policy.Record)
		plant  func(m *machinetest.Machine, theirs *policy.Secret)
	}{
		"with a record":             {full, nil},
		"with a provisional record": {func(r *policy.Record) { r.Volume = [32]byte{} }, nil},
		"without one":               {nil, nil},
		"with keys of theirs": {full, func(m *machinetest.Machine, theirs *policy.Secret) {
			m.RootFiles()[rootpart.ListFile] = theirKeys(m, theirs)
		}},
		"with keys of an earlier release's": {full, func(m *machinetest.Machine, theirs *policy.Secret) {
			var err error
			m.RootFiles()[rootpart.KeysFile], _, err = secureboot.SplitList(theirKeys(m, theirs))
			m.Must(err)
		}},
		"with the next secret's keys": {full, func(m *machinetest.Machine, theirs *policy.Secret) {
			box(m, theirs, rootpart.NextFile, "next-secret", map[string]any{"format": 1, "list": theirKeys(m, theirs), "guarantees": []byte{}})
		}},
		"with superseded keys": {full, func(m *machinetest.Machine, theirs *policy.Secret) {
			box(m, theirs, rootpart.NextKeysFile, "next-keys", map[string]any{"format": 2, "for": "00", "old": theirOld(m, theirs)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.PowerOn(replaced)
			m.Agent.Contract = m.Releases[1].Contract
			theirs := bindToOwn(m, c.record)
			if c.plant != nil {
				c.plant(m, theirs)
			}
			files := maps.Clone(m.RootFiles())
			m.Printed.Reset()
			m.Ops, m.Typed = nil, []string{m.RecoveryKey()}
			m.Said.Reset()
			if end := m.Boot(); end != "reboot" { // the system is condemned
				t.Errorf("ends in %s", end)
			}
			said := m.Said.String()
			if !strings.Contains(said, machinetest.OtherSecret) || !strings.Contains(said, "it was replaced for good") || !strings.Contains(m.Printed.String(), "Recovery key") {
				t.Errorf("the TPM was not asked, or nobody was:\n%s\n%s", m.Printed.String(), said)
			}
			if m.OpenVolume != nil || len(m.Written("write index")) > 0 {
				t.Errorf("it is open, or was written: %q", m.Ops)
			}
			for _, name := range []string{rootpart.GuaranteesFile, rootpart.ListFile} {
				if string(m.RootFiles()[name]) != string(files[name]) {
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
	m := machinetest.ProvisionedMachine(t, nil)
	lock, volumeKey, old := m.Unlocked()
	area := m.HeaderArea()
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false))
	m.Works(r.Lock())
	m.OpensByItself()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	_, err = part.WriteAt(area, 0)
	m.Must(err)
	m.Must(part.Sync())
	redefine(m, lock, volumeKey, old)
	m.Printed.Reset()
	m.Ends("recovery", machinetest.OtherSecret)
	if m.OpenVolume != nil || !strings.Contains(m.Printed.String(), "Recovery key") {
		t.Errorf("it is open, or asks %q", m.Printed.String())
	}
	// The recovery key still opens the data, by the header that is there.
	m.Typed = []string{m.RecoveryKey()}
	m.Ends("system", machinetest.OtherSecret)
}

// redefine gives the TPM an index that was deleted again: its Name depends on nothing but
// the handle and the key that writes it.
func redefine(m *machinetest.Machine, lock *rootlock.Lock, volumeKey []byte, secret *policy.Secret) {
	m.T.Helper()
	boot, mine := m.SealForAttacker(secret)
	if mine.NVIndex != lock.Sealed.NVIndex {
		m.T.Fatalf("defined %#x, the header names %#x: this proves nothing", mine.NVIndex, lock.Sealed.NVIndex)
	}
	key, err := secret.WriteKey()
	m.Must(err)
	m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(mine.NVIndex, key, &policy.Record{
		Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
	}))
	m.ChipChanged = true
}

// The keys are lost from the root partition: its data opens by the recovery key, and what
// could not be read is said.
func TestKeysLost(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	intact := m.World(true, nil)
	m.UnreadableFile = rootpart.ListFile
	m.Ends("recovery", machinetest.OtherSecret, "input/output error")
	m.PowerOn(intact)
	m.UnreadableFile = ""
	m.OpensByItself()
	delete(m.RootFiles(), rootpart.ListFile)
	m.Typed = []string{m.RecoveryKey()}
	m.Ends("system", machinetest.OtherSecret, "The recovery key opens your data")
}

// `reseal` is the way out that such a machine is told: it opens by itself afterwards, and
// the keyslot that is not its own goes.
func TestResealEndsSecretOfTheirOwn(t *testing.T) {
	for name, spoil := range map[string]func(m *machinetest.Machine){
		"another's secret": func(m *machinetest.Machine) { bindToOwn(m, func(*policy.Record) {}) },
		"a header without a TPM": func(m *machinetest.Machine) {
			bindToOwn(m, nil)
			m.PowerOn(m.World(true, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			spoil(m)
			r, c := m.Asked()
			m.Types("y", "weaker")
			m.Works(r.Reseal(c))
			m.Works(r.Lock())
			m.OpensByItself()
			m.OpensByItself()
			lock, volumeKey, secret := m.Unlocked()
			luks2.Wipe(volumeKey)
			secret.Wipe()
			if n := len(lock.Header.Keyslots()); n != 2 || lock.Replaced {
				t.Errorf("%d keyslots, and one to be removed: %v", n, lock.Replaced)
			}
		})
	}
}
