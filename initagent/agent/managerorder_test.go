package agent

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// layManager puts the first release's boot manager, with the release's signed description,
// where the fetcher does: anybody has both, and root of the running system writes there.
func (m *machine) layManager() {
	m.t.Helper()
	first := m.parcel(m.releases[1])
	text, err := first.release.Encode()
	m.must(err)
	signature, err := first.signer.sign(text, first.signedAt)
	m.must(err)
	for name, content := range map[string][]byte{"release.json": text, "release.json.pgp": signature, "bootx64.efi": m.manager} {
		m.rootFiles()[path.Join(fetched.Directory, "1", name)] = bytes.Clone(content)
	}
}

// Root of the running system chooses the fallback once a newer boot manager is in place,
// and lays the fallback's boot manager there for it: the newer one is not replaced, and
// not revoked. FAULTS 94
func TestOldReleaseReplacesNoManager(t *testing.T) {
	m, old := exchanged(t, pinned)
	before := m.listOf(m.world(true, nil))
	m.runs(2) // both paths have the new one, and nothing is revoked yet
	for name, list := range map[string]func(){
		"as it is": func() {},
		"with a list of an earlier release": func() {
			digest, err := authenticode.Digest(old)
			m.must(err)
			if !before.Replace(digest) || before.ManagerOf() != 0 {
				t.Fatal("the list knew of the exchange: this proves nothing")
			}
			m.must(rootpart.KeepList(store{m}, m.random, m.machineSecret(), before))
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := m.world(true, nil)
			defer m.powerOn(start)
			m.t = t
			m.powerOn(start)
			list()
			m.layManager()
			m.byHand = 1
			m.runs(1, "the boot manager of version 1 is not put in place")
			m.settles(1)
			m.byHand = 0
			m.settles(2)
			newer, err := authenticode.Digest(otherManager)
			m.must(err)
			revoked := slices.ContainsFunc(hashesIn(t, m.vars["dbx"].data), func(h []byte) bool { return bytes.Equal(h, newer[:]) })
			if revoked || m.startable(removable, otherManager) != nil || m.startable(managerCopy, otherManager) != nil {
				t.Errorf("the newer boot manager is revoked (%v), or was replaced", revoked)
			}
			if name == "as it is" {
				m.must(m.revoked(old))
			}
		})
	}
}

// losesSystem deletes all that the machine has of the second release, as root can.
func (m *machine) losesSystem() {
	for name := range m.esp.files {
		if strings.Contains(name, "test_2") {
			delete(m.esp.files, name)
		}
	}
	for name := range m.rootFiles() {
		if strings.Contains(name, "test_2") {
			delete(m.rootFiles(), name)
		}
	}
}

// forgetManager makes the TPM's record one of an earlier release.
func (m *machine) forgetManager() {
	m.t.Helper()
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	record := m.policyRecord()
	record.Manager = 0
	lock, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	key, err := secret.WriteKey()
	m.must(err)
	m.must(tpm.OpenTransport(m.emulator).WriteRecord(lock.Sealed.NVIndex, key, record))
	m.chipChanged = true
}

// The same with a list of before the exchange, or a damaged one, which is made again and
// knows of none: the TPM's record knows. It does so where the newer system was deleted, too,
// so that nothing is left of it in the record. FAULTS 94
func TestOlderListReplacesNoManager(t *testing.T) {
	m, _ := exchanged(t, pinned)
	before := bytes.Clone(m.rootFiles()[rootpart.ListFile])
	m.runs(2)
	if of := m.policyRecord().Manager; of != 2 {
		t.Fatalf("the record has the boot manager of version %d", of)
	}
	start := m.world(true, nil)
	newer, err := authenticode.Digest(otherManager)
	m.must(err)
	older := func(m *machine) { m.rootFiles()[rootpart.ListFile] = bytes.Clone(before) }
	damaged := func(m *machine) {
		list := bytes.Clone(m.rootFiles()[rootpart.ListFile])
		list[len(list)-5] ^= 1
		m.rootFiles()[rootpart.ListFile] = list
	}
	for name, changes := range map[string][]func(*machine){
		"older":                              {older},
		"damaged":                            {damaged},
		"older, the newer system deleted":    {older, (*machine).losesSystem},
		"damaged, the newer system deleted":  {damaged, (*machine).losesSystem},
		"older, exchanged by an earlier one": {older, (*machine).forgetManager},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.powerOn(start)
			for _, change := range changes {
				change(m)
			}
			m.layManager()
			m.byHand = 1
			m.runs(1, "the boot manager of version 1 is not put in place")
			for range 4 {
				m.runs(1)
			}
			revoked := slices.ContainsFunc(hashesIn(t, m.vars["dbx"].data), func(h []byte) bool { return bytes.Equal(h, newer[:]) })
			if revoked || m.startable(removable, otherManager) != nil || m.startable(managerCopy, otherManager) != nil {
				t.Errorf("the newer boot manager is revoked (%v), or was replaced", revoked)
			}
		})
	}
}

// A fallback brings the boot manager that the machine has, as when the newer release has the
// same one: nothing is to be done, and no start says that a step has failed, where neither
// list nor record knows whose it is.
func TestSameManagerOfFallback(t *testing.T) {
	m := provisionedMachine(t, pinned)
	before := bytes.Clone(m.rootFiles()[rootpart.ListFile])
	manager := bytes.Clone(m.esp.files[removable].now.data)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.rootFiles()[rootpart.ListFile] = before
	m.forgetManager()
	m.layManager()
	m.byHand = 1
	for range 3 {
		m.runs(1)
		if strings.Contains(m.said.String(), "FAILED") {
			t.Errorf("a step has failed:\n%s", m.said.String())
		}
	}
	if m.rootFiles()[bootmanager.File(&m.agent.Host)] != nil || !bytes.Equal(m.esp.files[removable].now.data, manager) {
		t.Error("the file is looked at again at each start, or the boot manager was written")
	}
	m.byHand = 0
	m.runs(2)
}
