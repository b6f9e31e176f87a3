package bootmanager_test

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// layManager puts the first release's boot manager, with the release's signed description,
// where the fetcher does: anybody has both, and root of the running system writes there.
func layManager(m *machinetest.Machine) {
	m.T.Helper()
	first := m.Parcel(m.Releases[1])
	text, err := first.Release.Encode()
	m.Must(err)
	signature, err := first.Signer.Sign(text, first.SignedAt)
	m.Must(err)
	for name, content := range map[string][]byte{"release.json": text, "release.json.pgp": signature, "bootx64.efi": m.Manager} {
		m.RootFiles()[path.Join(fetched.Directory, "1", name)] = bytes.Clone(content)
	}
}

// Root of the running system chooses the fallback once a newer boot manager is in place,
// and lays the fallback's boot manager there for it: the newer one is not replaced, and
// not revoked. FAULTS 94
func TestOldReleaseReplacesNoManager(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	before := m.ListOf(m.World(true, nil))
	m.Runs(2) // both paths have the new one, and nothing is revoked yet
	for name, list := range map[string]func(){
		"as it is": func() {},
		"with a list of an earlier release": func() {
			digest, err := authenticode.Digest(old)
			m.Must(err)
			if !before.Replace(digest) || before.ManagerOf() != 0 {
				t.Fatal("the list knew of the exchange: this proves nothing")
			}
			m.Must(rootpart.KeepList(machinetest.Store{M: m}, m.Random, m.MachineSecret(), before))
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := m.World(true, nil)
			defer m.PowerOn(start)
			m.T = t
			m.PowerOn(start)
			list()
			layManager(m)
			m.ByHand = 1
			m.Runs(1, "the boot manager of version 1 is not put in place")
			m.Settles(1)
			m.ByHand = 0
			m.Settles(2)
			newer, err := authenticode.Digest(machinetest.OtherManager)
			m.Must(err)
			revoked := slices.ContainsFunc(machinetest.HashesIn(t, m.Vars["dbx"].Data), func(h []byte) bool { return bytes.Equal(h, newer[:]) })
			if revoked || m.Startable(machinetest.Removable, machinetest.OtherManager) != nil || m.Startable(machinetest.ManagerCopy, machinetest.OtherManager) != nil {
				t.Errorf("the newer boot manager is revoked (%v), or was replaced", revoked)
			}
			if name == "as it is" {
				m.Must(m.Revoked(old))
			}
		})
	}
}

// The same with a list of before the exchange, or a damaged one, which is made again and
// knows of none: the TPM's record knows. It does so where the newer system was deleted, too,
// so that nothing is left of it in the record. FAULTS 94
func TestOlderListReplacesNoManager(t *testing.T) {
	m, _ := machinetest.Exchanged(t, machinetest.Pinned)
	before := bytes.Clone(m.RootFiles()[rootpart.ListFile])
	m.Runs(2)
	if of := m.PolicyRecord().Manager; of != 2 {
		t.Fatalf("the record has the boot manager of version %d", of)
	}
	start := m.World(true, nil)
	newer, err := authenticode.Digest(machinetest.OtherManager)
	m.Must(err)
	older := func(m *machinetest.Machine) { m.RootFiles()[rootpart.ListFile] = bytes.Clone(before) }
	damaged := func(m *machinetest.Machine) {
		list := bytes.Clone(m.RootFiles()[rootpart.ListFile])
		list[len(list)-5] ^= 1
		m.RootFiles()[rootpart.ListFile] = list
	}
	for name, changes := range map[string][]func(*machinetest.Machine){
		"older":                              {older},
		"damaged":                            {damaged},
		"older, the newer system deleted":    {older, (*machinetest.Machine).LosesSystem},
		"damaged, the newer system deleted":  {damaged, (*machinetest.Machine).LosesSystem},
		"older, exchanged by an earlier one": {older, (*machinetest.Machine).ForgetManager},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.PowerOn(start)
			for _, change := range changes {
				change(m)
			}
			layManager(m)
			m.ByHand = 1
			m.Runs(1, "the boot manager of version 1 is not put in place")
			for range 4 {
				m.Runs(1)
			}
			revoked := slices.ContainsFunc(machinetest.HashesIn(t, m.Vars["dbx"].Data), func(h []byte) bool { return bytes.Equal(h, newer[:]) })
			if revoked || m.Startable(machinetest.Removable, machinetest.OtherManager) != nil || m.Startable(machinetest.ManagerCopy, machinetest.OtherManager) != nil {
				t.Errorf("the newer boot manager is revoked (%v), or was replaced", revoked)
			}
		})
	}
}

// A fallback brings the boot manager that the machine has, as when the newer release has the
// same one: nothing is to be done, and no start says that a step has failed, where neither
// list nor record knows whose it is.
func TestSameManagerOfFallback(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	before := bytes.Clone(m.RootFiles()[rootpart.ListFile])
	manager := bytes.Clone(m.ESP.Files[machinetest.Removable].Now.Data)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.RootFiles()[rootpart.ListFile] = before
	m.ForgetManager()
	layManager(m)
	m.ByHand = 1
	for range 3 {
		m.Runs(1)
		if strings.Contains(m.Said.String(), "FAILED") {
			t.Errorf("a step has failed:\n%s", m.Said.String())
		}
	}
	if m.RootFiles()[bootmanager.File(&m.Agent.Host)] != nil || !bytes.Equal(m.ESP.Files[machinetest.Removable].Now.Data, manager) {
		t.Error("the file is looked at again at each start, or the boot manager was written")
	}
	m.ByHand = 0
	m.Runs(2)
}
