package agent

import (
	"bytes"
	"path"
	"slices"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/initagent/rootpart"
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
		m.rootFiles()[path.Join(fetchFolder, "1", name)] = bytes.Clone(content)
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
