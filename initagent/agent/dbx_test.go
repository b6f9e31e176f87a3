package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/rootpart"
)

// strangersHash is the hash of a loader that no machine here has.
var strangersHash = [32]byte(bytes.Repeat([]byte{0x5a}, 32))

// fetchRevoking delivers a release that names what shall not start any more.
func (m *machine) fetchRevoking(r *edition, digests ...[32]byte) {
	m.t.Helper()
	m.releases[r.contract.Version] = r
	p := m.parcel(r)
	var d secureboot.Database
	for _, digest := range digests {
		d = append(d, secureboot.Hash([16]byte{}, digest))
	}
	m.must(p.release.SetRevocations(d))
	m.deliver(p)
}

// revokesStranger says how a machine has not come to its end: the stranger's hash alone in dbx,
// the record with the one PCR 7 that the firmware measures, the list in step.
func (m *machine) revokesStranger() error {
	m.t.Helper()
	list := m.listOf(m.world(true, nil))
	hashes := hashesIn(m.t, m.vars["dbx"].data)
	switch r := m.policyRecord(); {
	case len(hashes) != 1 || !bytes.Equal(hashes[0], strangersHash[:]):
		return fmt.Errorf("dbx has %x, want %x", hashes, strangersHash)
	case r.Passing():
		return fmt.Errorf("the record has not settled: %+v", r)
	case !list.Revoked(strangersHash) || list.RevocationsWait(2):
		return fmt.Errorf("the list is %+v", list)
	}
	return nil
}

// What a release names goes into dbx once the release has proven itself, but for what this
// machine starts, or may have to. PCR 7 is what was predicted: no start asks for the
// recovery key, and the fallback unlocks too. FAULTS 110
func TestReleaseRevokes(t *testing.T) {
	m := provisionedMachine(t, pinned)
	next := newRelease(t, 2, 5, pinned)
	fallback, err := authenticode.Digest(m.releases[1].uki)
	m.must(err)
	manager, err := authenticode.Digest(m.manager)
	m.must(err)
	kernel, err := m.agent.RunningImage()
	m.must(err)
	digests := [][32]byte{fallback, strangersHash}
	if kernel.Kernel != nil {
		digests = append(digests, *kernel.Kernel)
	}
	m.fetchRevoking(next, digests...)
	m.runs(2)
	if len(m.vars["dbx"].data) > 0 {
		t.Error("dbx was written to in a trial")
	}
	m.bless()
	m.runs(2, "it would stop the UKI test_1.efi, which this machine starts", "dbx has what release 2 names, 1 more entries")
	if r := m.policyRecord(); !r.Passing() {
		t.Errorf("between the write and the restart the record is %+v", r)
	}
	m.runs(2)
	m.must(m.revokesStranger())
	m.holds(5, 1, 2)
	m.ops = nil
	m.runs(2)
	if got := strings.Join(m.ops, "\n"); strings.Contains(got, "variable") || strings.Contains(got, rootpart.ListFile) {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.byHand = 1
	m.runs(1)
	m.byHand = 0
	m.runs(2)

	// The release's own boot manager, which is the machine's, is never among it.
	p := m.parcel(newRelease(t, 3, 5, pinned))
	if err := p.release.SetRevocations(secureboot.Database{secureboot.Hash([16]byte{}, manager)}); err == nil {
		t.Error("a release revokes its own boot manager")
	}
}

// Root of the running system writes what it likes: it counts with the distributor's
// signature alone. FAULTS 110
func TestForgedRevocations(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchRevoking(newRelease(t, 2, 5, pinned), strangersHash)
	m.runs(2)
	m.bless()
	name := ""
	for file, content := range m.rootFiles() {
		if strings.HasSuffix(file, "/2/release.json") {
			name = file
			m.rootFiles()[file] = bytes.ReplaceAll(content, []byte("5a5a"), []byte("5b5b"))
		}
	}
	if name == "" {
		t.Fatal("the release's description is not there")
	}
	for range secureboot.MaxTries {
		m.runs(2, "revoke FAILED", "what the release wants in dbx")
	}
	m.runs(2)
	if len(m.vars["dbx"].data) > 0 || strings.Contains(m.said.String(), "revoke") {
		t.Errorf("dbx has %x:\n%s", m.vars["dbx"].data, m.said.String())
	}
}

// Firmware that takes no entry is asked at two starts, which is said, and left alone.
// FAULTS 110
func TestReleaseRevokesRefused(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchRevoking(newRelease(t, 2, 5, pinned), strangersHash)
	m.runs(2)
	m.bless()
	m.refuse = syscall.EACCES
	for range secureboot.MaxTries {
		m.runs(2, "revoke FAILED", "have the firmware take entries for dbx, 1 that release 2 names")
	}
	for range 2 {
		m.runs(2)
		if strings.Contains(m.said.String(), "revoke") {
			t.Errorf("it was asked again:\n%s", m.said.String())
		}
	}
	if r := m.policyRecord(); r.Passing() || len(m.vars["dbx"].data) > 0 {
		t.Errorf("the record is %+v, dbx %x", r, m.vars["dbx"].data)
	}
	// The next release has the same list, and the one after it a longer one.
	m.fetchRevoking(newRelease(t, 3, 5, pinned), strangersHash)
	m.runs(3)
	m.bless()
	m.runs(3, "this firmware has refused them before")
	m.runs(3)
	if strings.Contains(m.said.String(), "revoke") {
		t.Errorf("it was asked again:\n%s", m.said.String())
	}
	m.refuse = nil
	m.fetchRevoking(newRelease(t, 4, 5, pinned), strangersHash, [32]byte{1})
	m.runs(4)
	m.bless()
	m.runs(4, "dbx has what release 4 names, 2 more entries")
	m.runs(4)
}

// Wherever the power is cut, the machine unlocks by itself and comes to the same end.
// FAULTS 42, 110
func TestCutReleaseRevokes(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchRevoking(newRelease(t, 2, 5, pinned), strangersHash)
	m.runs(2)
	m.bless()
	var worlds []*world
	var how []string
	cut := map[string]int{}
	m.ops = nil
	m.snapshot = func() {
		at := last(m.ops)
		cut[at]++
		m.remaining(func(w *world) { worlds, how = append(worlds, w), append(how, at) })
	}
	for range 3 {
		m.runs(2)
	}
	m.snapshot = nil
	m.must(m.revokesStranger())
	for i, w := range worlds {
		m.powerOn(w)
		m.said.Reset()
		m.printed.Reset()
		left := errors.New("it was not started")
		for n := 0; n < 6 && left != nil; n++ {
			if end := m.run(); end != "system" || m.openVolume == nil || m.printed.Len() > 0 {
				t.Fatalf("cut after %s: it ends in %s and asks %q:\n%s", how[i], end, m.printed.String(), m.said.String())
			}
			left = m.revokesStranger()
		}
		if left != nil {
			t.Fatalf("cut after %s: %v\n%s", how[i], left, m.said.String())
		}
	}
	if cut["variable dbx"] != 1 || cut["root keep "+rootpart.ListFile] < 2 || cut["tpm write index"] < 2 {
		t.Errorf("the writes that were cut are %v", cut)
	}
	t.Logf("%d states after a cut", len(worlds))
}

// The UKI of a system that was condemned is what a machine starts when there is nothing else,
// and so is not stopped, nor is an option ROM that is in db for when its card is there.
// FAULTS 110
func TestReleaseRevokesNothingReserved(t *testing.T) {
	docked := func(c *contract.Contract) { pinned(c); c.VendorKeys = contract.VendorAuto }
	m := newMachine(t, docked)
	m.optionROM = "graphics card"
	m.ends("system", "hashes")
	m.ends("system")
	m.optionROM = "" // it is in a dock
	list, err := m.storedList()
	m.must(err)
	rom := [32]byte(list.Wanted.DB[1].Data)
	condemned, err := authenticode.Digest(m.releases[1].uki)
	m.must(err)
	m.fetchRevoking(newRelease(t, 2, 5, docked), condemned, rom, strangersHash)
	m.runs(2)
	m.bless()
	m.rename("test_1.efi", "test_1+0-3.efi")
	m.runs(2, "it would stop the UKI test_1+0-3.efi", "it would stop what db allows on this machine by its hash")
	m.runs(2)
	m.must(m.revokesStranger())
}

// Where the firmware measures its variables otherwise than they can be read, nothing is
// foretold: nothing is written, and it is said at two starts. FAULTS 110
func TestReleaseRevokesUnforetold(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchRevoking(newRelease(t, 2, 5, pinned), strangersHash)
	m.runs(2)
	m.bless()
	m.hidesDBX = true
	const why = "otherwise than they can be read"
	m.accepts("revoke FAILED", why)
	m.runs(2, "revoke FAILED", why)
	m.ops = nil
	m.runs(2)
	if strings.Contains(m.said.String(), "revoke") || strings.Contains(strings.Join(m.ops, " "), "variable dbx") {
		t.Errorf("it was asked again:\n%s", m.said.String())
	}
}

// Firmware that stores the entries otherwise than they were appended: the record allows what
// it holds by then. Where it measures them otherwise than it stores them, one start asks for
// the recovery key, and no more than one. FAULTS 110
func TestReleaseRevokesOtherwise(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetchRevoking(newRelease(t, 2, 5, pinned), strangersHash)
	m.runs(2)
	m.bless()
	ready := m.world(true, nil)
	other := [32]byte{5: 7}
	m.afterDBX = func(content []byte) []byte {
		foreign, err := secureboot.Database{secureboot.Hash(secureboot.DBX.GUID, other)}.Marshal()
		m.must(err)
		return append(foreign, content...)
	}
	m.runs(2)
	m.afterDBX = nil
	for range 2 {
		m.runs(2)
	}
	if n := len(hashesIn(t, m.vars["dbx"].data)); n != 2 || m.policyRecord().Passing() {
		t.Errorf("dbx has %d hashes, the record is %+v", n, m.policyRecord())
	}

	m.powerOn(ready)
	m.runs(2)
	m.extra = "dbx in another order"
	m.accepts()
	for range 2 {
		m.runs(2)
	}
	m.must(m.revokesStranger())
}
