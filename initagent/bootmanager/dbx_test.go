package bootmanager_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// strangersHash is the hash of a loader that no machine here has.
var strangersHash = [32]byte(bytes.Repeat([]byte{0x5a}, 32))

// revokesStranger says how a machine has not come to its end: the stranger's hash alone in dbx,
// the record with the one PCR 7 that the firmware measures, the list in step.
func revokesStranger(m *machinetest.Machine) error {
	m.T.Helper()
	list := m.ListOf(m.World(true, nil))
	hashes := machinetest.HashesIn(m.T, m.Vars["dbx"].Data)
	switch r := m.PolicyRecord(); {
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
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	next := machinetest.NewRelease(t, 2, 5, machinetest.Pinned)
	fallback, err := authenticode.Digest(m.Releases[1].UKI)
	m.Must(err)
	manager, err := authenticode.Digest(m.Manager)
	m.Must(err)
	kernel, err := m.Agent.RunningImage()
	m.Must(err)
	own, err := authenticode.Digest(next.UKI)
	m.Must(err)
	digests := [][32]byte{fallback, own, manager, strangersHash}
	if kernel.Kernel != nil {
		digests = append(digests, *kernel.Kernel)
	}
	m.FetchRevoking(next, digests...)
	m.Runs(2)
	if len(m.Vars["dbx"].Data) > 0 {
		t.Error("dbx was written to in a trial")
	}
	m.Bless()
	m.Runs(2, "it would stop the UKI test_1.efi, which this machine starts", "it would stop the UKI test_2.efi, which", "it would stop the boot manager, which", "dbx has what release 2 names, 1 more entries")
	if r := m.PolicyRecord(); !r.Passing() {
		t.Errorf("between the write and the restart the record is %+v", r)
	}
	m.Runs(2)
	m.Must(revokesStranger(m))
	m.Holds(5, 1, 2)
	m.Ops = nil
	m.Runs(2)
	if got := strings.Join(m.Ops, "\n"); strings.Contains(got, "variable") || strings.Contains(got, rootpart.ListFile) {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 0
	m.Runs(2)

	// The release's own boot manager, which is the machine's, is never among it.
	p := m.Parcel(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	if err := p.Release.SetRevocations(secureboot.Database{secureboot.Hash([16]byte{}, manager)}); err == nil {
		t.Error("a release revokes its own boot manager")
	}
}

// Root of the running system writes what it likes: it counts with the distributor's
// signature alone. FAULTS 110
func TestForgedRevocations(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), strangersHash)
	m.Runs(2)
	m.Bless()
	name := ""
	for file, content := range m.RootFiles() {
		if strings.HasSuffix(file, "/2/release.json") {
			name = file
			m.RootFiles()[file] = bytes.ReplaceAll(content, []byte("5a5a"), []byte("5b5b"))
		}
	}
	if name == "" {
		t.Fatal("the release's description is not there")
	}
	for range secureboot.MaxTries {
		m.Runs(2, "revoke FAILED", "what the release wants in dbx")
	}
	m.Runs(2)
	if len(m.Vars["dbx"].Data) > 0 || strings.Contains(m.Said.String(), "revoke") {
		t.Errorf("dbx has %x:\n%s", m.Vars["dbx"].Data, m.Said.String())
	}
}

// Firmware that takes no entry is asked at two starts, which is said, and left alone.
// FAULTS 110
func TestReleaseRevokesRefused(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), strangersHash)
	m.Runs(2)
	m.Bless()
	m.Refuse = syscall.EACCES
	for range secureboot.MaxTries {
		m.Runs(2, "revoke FAILED", "have the firmware take entries for dbx, 1 that release 2 names")
	}
	for range 2 {
		m.Runs(2)
		if strings.Contains(m.Said.String(), "revoke") {
			t.Errorf("it was asked again:\n%s", m.Said.String())
		}
	}
	if r := m.PolicyRecord(); r.Passing() || len(m.Vars["dbx"].Data) > 0 {
		t.Errorf("the record is %+v, dbx %x", r, m.Vars["dbx"].Data)
	}
	// The next release has the same list, and the one after it a longer one.
	m.FetchRevoking(machinetest.NewRelease(t, 3, 5, machinetest.Pinned), strangersHash)
	m.Runs(3)
	m.Bless()
	m.Runs(3, "this firmware has refused them before")
	m.Runs(3)
	if strings.Contains(m.Said.String(), "revoke") {
		t.Errorf("it was asked again:\n%s", m.Said.String())
	}
	m.Refuse = nil
	m.FetchRevoking(machinetest.NewRelease(t, 4, 5, machinetest.Pinned), strangersHash, [32]byte{1})
	m.Runs(4)
	m.Bless()
	m.Runs(4, "dbx has what release 4 names, 2 more entries")
	m.Runs(4)
}

// Wherever the power is cut, the machine unlocks by itself and comes to the same end.
// FAULTS 42, 110
func TestCutReleaseRevokes(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), strangersHash)
	m.Runs(2)
	m.Bless()
	var worlds []*machinetest.World
	var how []string
	cut := map[string]int{}
	m.Ops = nil
	m.Snapshot = func() {
		at := machinetest.Last(m.Ops)
		cut[at]++
		m.Remaining(func(w *machinetest.World) { worlds, how = append(worlds, w), append(how, at) })
	}
	for range 3 {
		m.Runs(2)
	}
	m.Snapshot = nil
	m.Must(revokesStranger(m))
	for i, w := range worlds {
		m.PowerOn(w)
		m.Said.Reset()
		m.Printed.Reset()
		left := errors.New("it was not started")
		for n := 0; n < 6 && left != nil; n++ {
			if end := m.Run(); end != "system" || m.OpenVolume == nil || m.Printed.Len() > 0 {
				t.Fatalf("cut after %s: it ends in %s and asks %q:\n%s", how[i], end, m.Printed.String(), m.Said.String())
			}
			left = revokesStranger(m)
		}
		if left != nil {
			t.Fatalf("cut after %s: %v\n%s", how[i], left, m.Said.String())
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
	docked := func(c *contract.Contract) { machinetest.Pinned(c); c.VendorKeys = contract.VendorAuto }
	m := machinetest.New(t, docked)
	m.OptionROM = "graphics card"
	m.Ends("system", "hashes")
	m.Ends("system")
	m.OptionROM = "" // it is in a dock
	list, err := m.StoredList()
	m.Must(err)
	rom := [32]byte(list.Wanted.DB[1].Data)
	condemned, err := authenticode.Digest(m.Releases[1].UKI)
	m.Must(err)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, docked), condemned, rom, strangersHash)
	m.Runs(2)
	m.Bless()
	m.Rename("test_1.efi", "test_1+0-3.efi")
	m.Runs(2, "it would stop the UKI test_1+0-3.efi", "it would stop what db allows on this machine by its hash")
	m.Runs(2)
	m.Must(revokesStranger(m))
}

// Where the firmware measures its variables otherwise than they can be read, nothing is
// foretold: nothing is written, and it is said at two starts. FAULTS 110
func TestReleaseRevokesUnforetold(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), strangersHash)
	m.Runs(2)
	m.Bless()
	m.HidesDBX = true
	const why = "otherwise than they can be read"
	m.Accepts("revoke FAILED", why)
	m.Runs(2, "revoke FAILED", why)
	m.Ops = nil
	m.Runs(2)
	if strings.Contains(m.Said.String(), "revoke") || strings.Contains(strings.Join(m.Ops, " "), "variable dbx") {
		t.Errorf("it was asked again:\n%s", m.Said.String())
	}
}

// Firmware that stores the entries otherwise than they were appended: the record allows what
// it holds by then. Where it measures them otherwise than it stores them, one start asks for
// the recovery key, and no more than one. FAULTS 110
func TestReleaseRevokesOtherwise(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FetchRevoking(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), strangersHash)
	m.Runs(2)
	m.Bless()
	ready := m.World(true, nil)
	other := [32]byte{5: 7}
	m.AfterDBX = func(content []byte) []byte {
		foreign, err := secureboot.Database{secureboot.Hash(secureboot.DBX.GUID, other)}.Marshal()
		m.Must(err)
		return append(foreign, content...)
	}
	m.Runs(2)
	m.AfterDBX = nil
	for range 2 {
		m.Runs(2)
	}
	if n := len(machinetest.HashesIn(t, m.Vars["dbx"].Data)); n != 2 || m.PolicyRecord().Passing() {
		t.Errorf("dbx has %d hashes, the record is %+v", n, m.PolicyRecord())
	}

	m.PowerOn(ready)
	m.Runs(2)
	m.Extra = "dbx in another order"
	m.Accepts()
	for range 2 {
		m.Runs(2)
	}
	m.Must(revokesStranger(m))
}
