package bootmanager_test

import (
	"bytes"
	"errors"
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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// The boot manager that was replaced goes into the machine's own dbx when the exchange
// has come to its end. PCR 7 is what was predicted, either system unlocks, and the
// firmware does not start the old one. FAULTS 94
func TestRevokeBootManager(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	for range 2 {
		m.Runs(2)
	}
	if len(m.Vars["dbx"].Data) > 0 {
		t.Error("it was revoked before the exchange had settled")
	}
	before := m.PolicyRecord()
	m.Runs(2, "the firmware does not start the boot manager that came with test_1.efi any more")
	both := m.PolicyRecord()
	if !both.Passing() || len(both.Branches) <= len(before.Branches)/2 {
		t.Errorf("between the write and the restart the record is %+v", both)
	}
	now, err := m.Agent.ToldStart()
	m.Must(err)
	log, _, err := m.Agent.ReadLog()
	m.Must(err)
	predicted, err := now.WithDBX(log, firmwareWith(m, nil), m.Vars["dbx"].Data)
	m.Must(err)
	if _, err := now.WithDBX(log, firmwareWith(m, m.Vars["dbx"].Data), nil); err == nil {
		t.Error("PCR 7 is foretold for firmware that has measured something else than it holds")
	}
	m.Runs(2)
	told, err := m.Agent.ToldBoot()
	m.Must(err)
	if told.PCR7 != predicted.Boot.PCR7 || told.PCR7 == now.Boot.PCR7 {
		t.Errorf("PCR 7 is %s, predicted %s, before %s", told.PCR7, predicted.Boot.PCR7, now.Boot.PCR7)
	}
	m.Must(m.Revoked(old))
	if r := m.PolicyRecord(); !r.Allows(&told) || r.Allows(&now.Boot) {
		t.Errorf("the record allows other boots than those with the new dbx: %+v", r)
	}
	m.Holds(5, 1, 2)
	settled := m.World(true, nil)
	m.Ops = nil
	m.Runs(2)
	if got := slices.Concat(m.Written("esp "), m.Written(rootpart.ListFile), m.Written("tpm"), m.Written("variable")); len(got) > 0 {
		t.Errorf("an ordinary boot writes %q", got)
	}
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 0
	m.PowerOn(settled)
	m.Plant(machinetest.Removable, old)
	m.Said.Reset()
	if end := m.Boot(); end != "dead" || m.OpenVolume != nil {
		t.Errorf("with the old boot manager it ends in %s:\n%s", end, m.Said.String())
	}
	// From the firmware's other path the machine goes on, and restores the first when it
	// next compares every byte.
	m.PowerOn(settled)
	m.Clock = m.Clock.AddDate(0, 0, 8)
	m.Plant(machinetest.Removable, old)
	m.BootEntry = true
	m.Runs(2)
	m.BootEntry = false
	m.Runs(2)
	// Brought back by a release, it does not take a place in which it would not start.
	m.FetchManager(machinetest.NewRelease(t, 3, 5, machinetest.Pinned), m.Manager)
	m.Runs(3)
	m.Bless()
	m.Runs(3, "is in the firmware's dbx")
	m.Runs(3)
	if !m.HasManager(machinetest.Removable, machinetest.OtherManager) {
		t.Error("a boot manager in dbx was put in place")
	}
}

// firmwareWith is what the firmware holds, with this dbx.
func firmwareWith(m *machinetest.Machine, dbx []byte) (s enroll.State) {
	s = m.Agent.FirmwareKeys
	s.DBX.Raw = dbx
	return s
}

// Wherever the power is cut while the boot manager is exchanged and the old one revoked,
// the machine unlocks by itself, and comes to the same end. Cuts that follow each other
// are TestEverySequenceOfManagers's. FAULTS 42, 94
func TestCutRevocation(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	var worlds []*machinetest.World
	var how []string
	cut := map[string]int{}
	m.Ops = nil
	m.Snapshot = func() {
		at := machinetest.Last(m.Ops)
		cut[at]++
		m.Remaining(func(w *machinetest.World) { worlds, how = append(worlds, w), append(how, at) })
	}
	for range 5 {
		m.Runs(2)
	}
	m.Snapshot = nil
	m.Must(m.Revoked(old))
	for i, w := range worlds {
		m.PowerOn(w)
		m.Said.Reset()
		m.Printed.Reset()
		left := errors.New("it was not started")
		for n := 0; n < 6 && left != nil; n++ {
			if end := m.Run(); end != "system" || m.OpenVolume == nil || m.Printed.Len() > 0 {
				t.Fatalf("cut after %s: it ends in %s and asks %q:\n%s", how[i], end, m.Printed.String(), m.Said.String())
			}
			left = m.Revoked(old)
		}
		if left != nil {
			t.Fatalf("cut after %s: %v\n%s", how[i], left, m.Said.String())
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
		m, old := machinetest.Exchanged(t, machinetest.Pinned)
		m.Refuse = refusal
		for range 2 {
			m.Runs(2)
		}
		for range secureboot.MaxTries {
			m.Runs(2, "revoke FAILED", "did not take 1 revocations", refusal.Error())
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
		if m.RootFiles()[bootmanager.File(&m.Agent.Host)] != nil {
			t.Error("the fetched boot manager is still there")
		}
		m.Extra = "another firmware"
		m.Accepts()
		m.Runs(2)
		// What the TPM keeps from the old one, a word of every day does not give it.
		m.Plant(machinetest.Removable, old)
		m.Typed = []string{m.RecoveryKey(), "y", "y"}
		m.Printed.Reset()
		m.Ends("system", "PCR 4 differs")
		if !strings.Contains(m.Printed.String(), "an old one, which a newer one had replaced") || strings.Contains(m.Printed.String(), "Accepted") {
			t.Errorf("printed %s", m.Printed.String())
		}
		m.Plant(machinetest.Removable, m.ESP.Files[machinetest.ManagerCopy].Now.Data)
		m.Runs(2)
		m.Plant(machinetest.Removable, old)
		m.Ends("recovery")
		r, c := m.Console()
		m.Types(m.RecoveryKey(), "y", "y")
		m.Works(r.Unlock(c))
		if err := r.Reseal(c); err == nil {
			t.Error("the console accepts it")
		}
		m.Works(r.Lock())
		m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
		m.Ends("system")
		m.Runs(2)
	}
}

// An old boot manager of this machine's own, laid on one of the paths or on both while
// the exchange has not settled, does not keep it from that: it is replaced again.
// FAULTS 94
func TestPlantedWhileExchanged(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	m.Runs(2)
	updated := m.World(true, nil)
	for name, c := range map[string]struct {
		paths []string
		times int
	}{
		"the other path":     {[]string{machinetest.ManagerCopy}, 1},
		"the path that runs": {[]string{machinetest.Removable}, 1},
		"both":               {[]string{machinetest.Removable, machinetest.ManagerCopy}, 1},
		"again and again":    {[]string{machinetest.ManagerCopy}, 4},
	} {
		m.PowerOn(updated)
		for range c.times {
			for _, path := range c.paths {
				m.Plant(path, old)
			}
			m.Runs(2)
		}
		m.Settles(2)
		if err := m.Revoked(old); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor does it where it comes between the end of the exchange and the revocation.
	m.PowerOn(updated)
	m.Runs(2)
	var worlds []*machinetest.World
	m.Ops = nil
	m.Snapshot = func() { m.Remaining(func(w *machinetest.World) { worlds = append(worlds, w) }) }
	m.Runs(2)
	m.Snapshot = nil
	planted := 0
	for _, w := range worlds {
		m.PowerOn(w)
		m.Plant(machinetest.ManagerCopy, old)
		if m.Startable(machinetest.ManagerCopy, m.Manager) != nil {
			continue // it is in dbx
		}
		planted++
		m.Settles(2)
		if err := m.Revoked(old); err != nil {
			t.Errorf("planted after the exchange: %v", err)
		}
	}
	if planted == 0 {
		t.Error("no state was left to plant it in")
	}
	// Where root of the running system has taken away what would replace it, it is left
	// alone: it may be what the machine starts by.
	for _, w := range worlds {
		m.PowerOn(w)
		delete(m.RootFiles(), bootmanager.File(&m.Agent.Host))
		m.Plant(machinetest.ManagerCopy, old)
		m.Must(m.Emulator.PowerOn(w.Chip))
		if m.PolicyRecord().Passing() || m.Startable(machinetest.ManagerCopy, m.Manager) != nil {
			continue
		}
		planted = 0
		m.Settles(2)
		if len(m.Vars["dbx"].Data) > 0 {
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
	optional := machinetest.With(func(c *contract.Contract) { c.SecureBoot = contract.Optional })
	m := machinetest.New(t, optional)
	m.NoSecureBoot = true
	m.Ends("system")
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, optional), machinetest.OtherManager)
	m.Runs(2)
	m.Bless()
	m.Settles(2)
	if len(m.Vars["dbx"].Data) > 0 || !m.OnESP(machinetest.Removable) || m.RootFiles()[bootmanager.File(&m.Agent.Host)] != nil {
		t.Error("a machine without keys of its own revokes, or does not come to an end")
	}
	m = machinetest.New(t, machinetest.Pinned)
	m.Unaccounted = true
	m.Ends("system")
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(2)
	m.Bless()
	m.Settles(2)
	if len(m.Vars["dbx"].Data) > 0 || m.RootFiles()[bootmanager.File(&m.Agent.Host)] != nil {
		t.Error("a machine that does not know what it was started by revokes, or does not come to an end")
	}
}

// Firmware that orders dbx otherwise than it was appended: the record allows what it
// holds by then.
func TestRevocationOrderedOtherwise(t *testing.T) {
	m, _ := machinetest.Exchanged(t, machinetest.Pinned)
	var other [32]byte
	other[5] = 7
	for range 2 {
		m.Runs(2)
	}
	m.AfterDBX = func(content []byte) []byte {
		foreign, err := secureboot.Database{secureboot.Hash(secureboot.DBX.GUID, other)}.Marshal()
		m.Must(err)
		return slices.Concat(foreign, content)
	}
	m.Runs(2)
	m.AfterDBX = nil
	m.Runs(2)
	if len(machinetest.HashesIn(t, m.Vars["dbx"].Data)) != 2 || m.PolicyRecord().Passing() {
		t.Errorf("dbx is %x", m.Vars["dbx"].Data)
	}
	m.Runs(2)
}

// Anything that this machine has signed can be laid in a boot manager's place, while one
// is exchanged or by anyone who puts an old release's files back. Only boot managers end
// in dbx. FAULTS 110
func TestRevokesBootManagersOnly(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	files := map[string][]byte{}
	for name, content := range m.RootFiles() {
		if strings.HasPrefix(name, fetched.Directory) {
			files[name] = bytes.Clone(content)
		}
	}
	m.Settles(2)
	m.Must(m.Revoked(old))
	uki := bytes.Clone(m.ESP.Files[path.Join(bls.Directory, "test_1.efi")].Now.Data)
	m.Plant(machinetest.ManagerCopy, uki)
	m.Rename("test_1.efi", "test_1+0-3.efi")
	maps.Copy(m.RootFiles(), files)
	m.Settles(2)
	digest, err := authenticode.Digest(uki)
	m.Must(err)
	if bytes.Contains(m.Vars["dbx"].Data, digest[:]) {
		t.Error("the fallback's UKI is in dbx")
	}
}

// An older release on an empty disk, with a firmware that keeps dbx when its keys are
// cleared: its boot manager would not start, so no PK is written. FAULTS 110
func TestEnrollsNothingRevoked(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	m.Settles(2)
	m.Must(m.Revoked(old))
	dbx := m.Vars["dbx"]
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Vars["dbx"] = dbx
	m.Said.Reset()
	if end := m.Boot(); end != "reboot" || !strings.Contains(m.Said.String(), "its hash is in dbx") {
		t.Errorf("ends in %s:\n%s", end, m.Said.String())
	}
	if len(m.Vars["PK"].Data) > 0 {
		t.Error("the machine has a PK, and nothing that starts")
	}
}
