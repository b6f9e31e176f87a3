package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/rootpart"
)

// exchanged is a machine on which the second release has proven itself, and waits to put
// its boot manager in place. It returns what the old one is, signed.
func exchanged(t *testing.T, change func(*contract.Contract)) (m *machine, old []byte) {
	t.Helper()
	m = provisionedMachine(t, change)
	old = bytes.Clone(m.esp.files[removable].now.data)
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, change), otherManager)
	m.runs(2)
	m.bless()
	return m, old
}

// plant lays a boot manager of this machine's own on a path.
func (m *machine) plant(name string, image []byte) {
	m.esp.files[name] = &espFile{remains{data: bytes.Clone(image)}, []remains{{data: bytes.Clone(image)}}}
}

// hashesIn reads the SHA-256 hashes of an EFI signature database, by the specification's
// offsets (UEFI 2.10, section 32.4.1) and by nothing of ours.
func hashesIn(t testing.TB, db []byte) (hashes [][]byte) {
	t.Helper()
	sha256GUID := []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
	for le := binary.LittleEndian; len(db) > 0; {
		size, head, each := le.Uint32(db[16:]), le.Uint32(db[20:]), le.Uint32(db[24:])
		for at := 28 + head; bytes.Equal(db[:16], sha256GUID) && at < size; at += each {
			hashes = append(hashes, db[at+16:at+each])
		}
		db = db[size:]
	}
	return hashes
}

// revoked says how a machine has not come to its end: the old boot manager's hash once in
// dbx, the record with the one PCR 7 that the firmware measures, the list in step, and
// nothing left to do.
func (m *machine) revoked(old []byte) error {
	m.t.Helper()
	digest, err := authenticode.Digest(old)
	m.must(err)
	list := m.listOf(m.world(true, nil))
	hashes := hashesIn(m.t, m.vars["dbx"].data)
	switch r := m.policyRecord(); {
	case len(hashes) != 1 || !bytes.Equal(hashes[0], digest[:]):
		return fmt.Errorf("dbx has %x, want %x", hashes, digest)
	case r.Passing() || !r.Programs:
		return fmt.Errorf("the record has not settled: %+v", r)
	case !list.Revoked(digest) || list.Allows(digest) || len(list.ToRevoke()) > 0:
		return fmt.Errorf("the list is %+v", list)
	case m.rootFiles()[bootmanager.File(&m.agent.Host)] != nil:
		return fmt.Errorf("the fetched boot manager is still there")
	case !m.hasManager(removable, otherManager) || !m.hasManager(managerCopy, otherManager):
		return fmt.Errorf("the new boot manager is not in its place")
	case m.managerStarts(removable) != nil || m.startable(removable, m.manager) == nil:
		return fmt.Errorf("the firmware starts something else")
	}
	return nil
}

// settles starts a machine until nothing changes any more. Each start must unlock by
// itself.
func (m *machine) settles(version contract.Version) {
	m.t.Helper()
	for range 8 {
		m.runs(version)
	}
}

// The boot manager that was replaced goes into the machine's own dbx when the exchange
// has come to its end. PCR 7 is what was predicted, either system unlocks, and the
// firmware does not start the old one. FAULTS 94
func TestRevokeBootManager(t *testing.T) {
	m, old := exchanged(t, pinned)
	for range 2 {
		m.runs(2)
	}
	if len(m.vars["dbx"].data) > 0 {
		t.Error("it was revoked before the exchange had settled")
	}
	before := m.policyRecord()
	m.runs(2, "the firmware does not start the boot manager that came with test_1.efi any more")
	both := m.policyRecord()
	if !both.Passing() || len(both.Branches) <= len(before.Branches)/2 {
		t.Errorf("between the write and the restart the record is %+v", both)
	}
	now, err := m.agent.ToldStart()
	m.must(err)
	log, _, err := m.agent.ReadLog()
	m.must(err)
	predicted, err := now.WithDBX(log, m.firmwareWith(nil), m.vars["dbx"].data)
	m.must(err)
	if _, err := now.WithDBX(log, m.firmwareWith(m.vars["dbx"].data), nil); err == nil {
		t.Error("PCR 7 is foretold for firmware that has measured something else than it holds")
	}
	m.runs(2)
	told, err := m.agent.ToldBoot()
	m.must(err)
	if told.PCR7 != predicted.Boot.PCR7 || told.PCR7 == now.Boot.PCR7 {
		t.Errorf("PCR 7 is %s, predicted %s, before %s", told.PCR7, predicted.Boot.PCR7, now.Boot.PCR7)
	}
	m.must(m.revoked(old))
	if r := m.policyRecord(); !r.Allows(&told) || r.Allows(&now.Boot) {
		t.Errorf("the record allows other boots than those with the new dbx: %+v", r)
	}
	m.holds(5, 1, 2)
	settled := m.world(true, nil)
	m.ops = nil
	m.runs(2)
	if got := slices.Concat(m.written("esp "), m.written(rootpart.ListFile), m.written("tpm"), m.written("variable")); len(got) > 0 {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.byHand = 1
	m.runs(1)
	m.byHand = 0
	m.powerOn(settled)
	m.plant(removable, old)
	m.said.Reset()
	if end := m.boot(); end != "dead" || m.openVolume != nil {
		t.Errorf("with the old boot manager it ends in %s:\n%s", end, m.said.String())
	}
	// From the firmware's other path the machine goes on, and restores the first when it
	// next compares every byte.
	m.powerOn(settled)
	m.clock = m.clock.AddDate(0, 0, 8)
	m.plant(removable, old)
	m.bootEntry = true
	m.runs(2)
	m.bootEntry = false
	m.runs(2)
	// Brought back by a release, it does not take a place in which it would not start.
	m.fetchManager(newRelease(t, 3, 5, pinned), m.manager)
	m.runs(3)
	m.bless()
	m.runs(3, "is in the firmware's dbx")
	m.runs(3)
	if !m.hasManager(removable, otherManager) {
		t.Error("a boot manager in dbx was put in place")
	}
}

// firmwareWith is what the firmware holds, with this dbx.
func (m *machine) firmwareWith(dbx []byte) (s enroll.State) {
	s = m.agent.FirmwareKeys
	s.DBX.Raw = dbx
	return s
}

// Wherever the power is cut while the boot manager is exchanged and the old one revoked,
// the machine unlocks by itself, and comes to the same end. Cuts that follow each other
// are TestEverySequenceOfManagers's. FAULTS 42, 94
func TestCutRevocation(t *testing.T) {
	m, old := exchanged(t, pinned)
	var worlds []*world
	var how []string
	cut := map[string]int{}
	m.ops = nil
	m.snapshot = func() {
		at := last(m.ops)
		cut[at]++
		m.remaining(func(w *world) { worlds, how = append(worlds, w), append(how, at) })
	}
	for range 5 {
		m.runs(2)
	}
	m.snapshot = nil
	m.must(m.revoked(old))
	for i, w := range worlds {
		m.powerOn(w)
		m.said.Reset()
		m.printed.Reset()
		left := errors.New("it was not started")
		for n := 0; n < 6 && left != nil; n++ {
			if end := m.run(); end != "system" || m.openVolume == nil || m.printed.Len() > 0 {
				t.Fatalf("cut after %s: it ends in %s and asks %q:\n%s", how[i], end, m.printed.String(), m.said.String())
			}
			left = m.revoked(old)
		}
		if left != nil {
			t.Fatalf("cut after %s: %v\n%s", how[i], left, m.said.String())
		}
	}
	if cut["variable dbx"] != 1 || cut["root keep "+rootpart.ListFile] < 3 || cut["tpm write index"] < 4 {
		t.Errorf("the writes that were cut are %v", cut)
	}
	t.Logf("%d states after a cut", len(worlds))
}

// Firmware that takes no revocation, or has no room left, is asked at two starts, which
// is said, and left alone. Nothing is lost by it: not the next start, not what the owner
// may accept. FAULTS 94
func TestRevocationRefused(t *testing.T) {
	for _, refusal := range []error{syscall.EACCES, syscall.ENOSPC} {
		m, old := exchanged(t, pinned)
		m.refuse = refusal
		for range 2 {
			m.runs(2)
		}
		for range secureboot.MaxTries {
			m.runs(2, "revoke FAILED", "did not take 1 revocations", refusal.Error())
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
		if m.rootFiles()[bootmanager.File(&m.agent.Host)] != nil {
			t.Error("the fetched boot manager is still there")
		}
		m.extra = "another firmware"
		m.accepts()
		m.runs(2)
		// What the TPM keeps from the old one, a word of every day does not give it.
		m.plant(removable, old)
		m.typed = []string{m.recoveryKey(), "y", "y"}
		m.printed.Reset()
		m.ends("system", "PCR 4 differs")
		if !strings.Contains(m.printed.String(), "an old one, which a newer one had replaced") || strings.Contains(m.printed.String(), "Accepted") {
			t.Errorf("printed %s", m.printed.String())
		}
		m.plant(removable, m.esp.files[managerCopy].now.data)
		m.runs(2)
		m.plant(removable, old)
		m.ends("recovery")
		r, c := m.console()
		m.types(m.recoveryKey(), "y", "y")
		m.works(r.Unlock(c))
		if err := r.Reseal(c); err == nil {
			t.Error("the console accepts it")
		}
		m.works(r.Lock())
		m.typed = []string{m.recoveryKey(), "y", "weaker"}
		m.ends("system")
		m.runs(2)
	}
}

// An old boot manager of this machine's own, laid on one of the paths or on both while
// the exchange has not settled, does not keep it from that: it is replaced again.
// FAULTS 94
func TestPlantedWhileExchanged(t *testing.T) {
	m, old := exchanged(t, pinned)
	m.runs(2)
	updated := m.world(true, nil)
	for name, c := range map[string]struct {
		paths []string
		times int
	}{
		"the other path":     {[]string{managerCopy}, 1},
		"the path that runs": {[]string{removable}, 1},
		"both":               {[]string{removable, managerCopy}, 1},
		"again and again":    {[]string{managerCopy}, 4},
	} {
		m.powerOn(updated)
		for range c.times {
			for _, path := range c.paths {
				m.plant(path, old)
			}
			m.runs(2)
		}
		m.settles(2)
		if err := m.revoked(old); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor does it where it comes between the end of the exchange and the revocation.
	m.powerOn(updated)
	m.runs(2)
	var worlds []*world
	m.ops = nil
	m.snapshot = func() { m.remaining(func(w *world) { worlds = append(worlds, w) }) }
	m.runs(2)
	m.snapshot = nil
	planted := 0
	for _, w := range worlds {
		m.powerOn(w)
		m.plant(managerCopy, old)
		if m.startable(managerCopy, m.manager) != nil {
			continue // it is in dbx
		}
		planted++
		m.settles(2)
		if err := m.revoked(old); err != nil {
			t.Errorf("planted after the exchange: %v", err)
		}
	}
	if planted == 0 {
		t.Error("no state was left to plant it in")
	}
	// Where root of the running system has taken away what would replace it, it is left
	// alone: it may be what the machine starts by.
	for _, w := range worlds {
		m.powerOn(w)
		delete(m.rootFiles(), bootmanager.File(&m.agent.Host))
		m.plant(managerCopy, old)
		m.must(m.emulator.powerOn(w.chip))
		if m.policyRecord().Passing() || m.startable(managerCopy, m.manager) != nil {
			continue
		}
		planted = 0
		m.settles(2)
		if len(m.vars["dbx"].data) > 0 {
			t.Error("a boot manager that lies on one of the paths was revoked")
		}
	}
	if planted != 0 {
		t.Error("no state was left in which it could be needed")
	}
}

// What has no place in it is left alone: a machine whose Secure Boot keys are not its
// own, one without a record over PCR 4, one whose firmware measures what nobody knows.
func TestNothingToRevoke(t *testing.T) {
	optional := with(func(c *contract.Contract) { c.SecureBoot = contract.Optional })
	m := newMachine(t, optional)
	m.noSecureBoot = true
	m.ends("system")
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, optional), otherManager)
	m.runs(2)
	m.bless()
	m.settles(2)
	if len(m.vars["dbx"].data) > 0 || !m.onESP(removable) || m.rootFiles()[bootmanager.File(&m.agent.Host)] != nil {
		t.Error("a machine without keys of its own revokes, or does not come to an end")
	}
	m = newMachine(t, pinned)
	m.unaccounted = true
	m.ends("system")
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.runs(2)
	m.bless()
	m.settles(2)
	if len(m.vars["dbx"].data) > 0 || m.rootFiles()[bootmanager.File(&m.agent.Host)] != nil {
		t.Error("a machine that does not know what it was started by revokes, or does not come to an end")
	}
}

// Firmware that orders dbx otherwise than it was appended: the record allows what it
// holds by then.
func TestRevocationOrderedOtherwise(t *testing.T) {
	m, _ := exchanged(t, pinned)
	var other [32]byte
	other[5] = 7
	for range 2 {
		m.runs(2)
	}
	m.afterDBX = func(content []byte) []byte {
		foreign, err := secureboot.Database{secureboot.Hash(secureboot.DBX.GUID, other)}.Marshal()
		m.must(err)
		return slices.Concat(foreign, content)
	}
	m.runs(2)
	m.afterDBX = nil
	m.runs(2)
	if len(hashesIn(t, m.vars["dbx"].data)) != 2 || m.policyRecord().Passing() {
		t.Errorf("dbx is %x", m.vars["dbx"].data)
	}
	m.runs(2)
}

// Anything that this machine has signed can be laid in a boot manager's place, while one
// is exchanged or by whoever puts an old release's files back. Only boot managers end
// in dbx. FAULTS 110
func TestRevokesBootManagersOnly(t *testing.T) {
	m, old := exchanged(t, pinned)
	files := map[string][]byte{}
	for name, content := range m.rootFiles() {
		if strings.HasPrefix(name, fetched.Directory) {
			files[name] = bytes.Clone(content)
		}
	}
	m.settles(2)
	m.must(m.revoked(old))
	uki := bytes.Clone(m.esp.files[path.Join(bls.Directory, "test_1.efi")].now.data)
	m.plant(managerCopy, uki)
	m.rename("test_1.efi", "test_1+0-3.efi")
	maps.Copy(m.rootFiles(), files)
	m.settles(2)
	digest, err := authenticode.Digest(uki)
	m.must(err)
	if bytes.Contains(m.vars["dbx"].data, digest[:]) {
		t.Error("the fallback's UKI is in dbx")
	}
}

// An older release on an empty disk, with a firmware that keeps dbx when its keys are
// cleared: its boot manager would not start, so no PK is written. FAULTS 110
func TestEnrollsNothingRevoked(t *testing.T) {
	m, old := exchanged(t, pinned)
	m.settles(2)
	m.must(m.revoked(old))
	dbx := m.vars["dbx"]
	m.powerOn(m.installed(diskSize))
	m.vars["dbx"] = dbx
	m.said.Reset()
	if end := m.boot(); end != "reboot" || !strings.Contains(m.said.String(), "its hash is in dbx") {
		t.Errorf("ends in %s:\n%s", end, m.said.String())
	}
	if len(m.vars["PK"].data) > 0 {
		t.Error("the machine has a PK, and nothing that starts")
	}
}
