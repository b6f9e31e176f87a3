package bootmanager_test

import (
	"bytes"
	mrand "math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upkeep"
)

// backedUp is a machine whose boot manager was replaced and revoked, with the ESP's boot
// managers from a backup of before.
func backedUp(t *testing.T) (m *machinetest.Machine, old []byte) {
	t.Helper()
	m, old = machinetest.Exchanged(t, machinetest.Pinned)
	m.Settles(2)
	m.Must(m.Revoked(old))
	m.Plant(machinetest.Removable, old)
	m.Plant(machinetest.ManagerCopy, old)
	return m, old
}

// losesKeys clears the firmware's keys, but for what it refuses.
func losesKeys(m *machinetest.Machine) {
	dbx := m.Vars["dbx"]
	m.Vars = machinetest.NewVariables()
	m.Vars["dbx"] = dbx
}

// hasCopies checks that the root partition has copies of this boot manager and of no
// other.
func hasCopies(m *machinetest.Machine, manager []byte) {
	m.T.Helper()
	want, err := authenticode.Digest(manager)
	m.Must(err)
	copies, err := upkeep.Keeper(&m.Agent.Host).Managers()
	if err != nil || len(copies) != 2 {
		m.T.Fatalf("%d copies, %v", len(copies), err)
	}
	for _, c := range copies {
		if got, err := authenticode.Digest(c); err != nil || got != want {
			m.T.Errorf("there is a copy of another boot manager (%v)", err)
		}
	}
}

// Keys that are enrolled again, over an ESP from a backup whose boot manager is in dbx by
// now: the good one takes its place first, and the machine opens by itself. Cut anywhere,
// it comes up the same way. FAULTS 110
func TestEnrollReplacesRevoked(t *testing.T) {
	m, old := backedUp(t)
	losesKeys(m)
	m.Typed = []string{m.RecoveryKey(), "y"}
	w := m.World(true, nil)
	m.Ends("system", machinetest.Removable+" is the one of version 2 now")
	m.Runs(2)
	m.Must(m.Revoked(old))
	m.Owner = true
	states, end := m.Record(w, mrand.New(mrand.NewPCG(51, 52)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for _, s := range states {
		m.PowerOn(s.World)
		m.Said.Reset()
		if end := m.Run(); end != "system" || m.OpenVolume == nil || m.Vars["SecureBoot"].Data[0] != 1 {
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
		}
		m.Must(m.Revoked(old))
	}
}

// Without a good one at hand nothing is enrolled, and the message says what to do.
func TestEnrollWithoutGoodManager(t *testing.T) {
	m, _ := backedUp(t)
	for name := range m.RootFiles() {
		if strings.HasPrefix(name, rootpart.Copies) && strings.HasSuffix(strings.ToLower(name), "x64.efi") {
			delete(m.RootFiles(), name)
		}
	}
	losesKeys(m)
	m.Typed = []string{m.RecoveryKey(), "y"}
	m.Ends("system", "there is no newer boot manager at hand", "`esp-rebuild` at the recovery console")
	if len(m.Vars["PK"].Data) > 0 {
		t.Error("the machine has a PK, and nothing that starts")
	}
}

// A backup of the ESP in a boot that enforces nothing: the old boot manager is not copied
// over the good one, which is put back. FAULTS 110
func TestRevokedIsNotCopied(t *testing.T) {
	m, _ := backedUp(t)
	losesKeys(m)
	for range 2 {
		m.Typed = []string{m.RecoveryKey(), "n", "n"}
		m.Clock = m.Clock.AddDate(0, 0, 8) // every byte is compared
		m.Ends("system")
		hasCopies(m, machinetest.OtherManager)
		for _, name := range []string{machinetest.Removable, machinetest.ManagerCopy} {
			if !m.HasManager(name, machinetest.OtherManager) {
				t.Errorf("%s is not put back:\n%s", name, m.Said.String())
			}
		}
	}
}

// The same where the firmware takes no revocation, and starts the old one: its owner types
// the recovery key and accepts nothing, and the next start is as ever.
func TestReplacedIsPutBack(t *testing.T) {
	m, old := machinetest.Exchanged(t, machinetest.Pinned)
	m.Refuse = syscall.EINVAL
	m.Settles(2)
	if len(m.Vars["dbx"].Data) > 0 {
		t.Fatal("the firmware has taken it: this proves nothing")
	}
	planted := m.World(true, nil)
	for _, answers := range [][]string{{"n"}, {"y", ""}} {
		m.PowerOn(planted)
		m.Plant(machinetest.Removable, old)
		m.Plant(machinetest.ManagerCopy, old)
		m.Typed = append([]string{m.RecoveryKey()}, answers...)
		m.Ends("system", "a boot manager that was replaced is back", "is put back")
		hasCopies(m, machinetest.OtherManager)
		m.Runs(2)
	}
	// Accepted by the word, it stays.
	m.PowerOn(planted)
	m.Plant(machinetest.Removable, old)
	m.Plant(machinetest.ManagerCopy, old)
	m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
	m.Ends("system")
	m.Clock = m.Clock.AddDate(0, 0, 8)
	m.Runs(2)
	if !m.HasManager(machinetest.Removable, m.Manager) {
		t.Error("what the owner has accepted is taken away")
	}
	m.Runs(2)
}

// Root of the running system puts back an old boot manager, and the list of a time before
// it was replaced: the TPM's record does not know it, and a "y" is not enough. FAULTS 94
func TestOlderListHidesNoManager(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		m, old := machinetest.Exchanged(t, machinetest.Pinned)
		m.Refuse = syscall.EINVAL
		before := bytes.Clone(m.RootFiles()[rootpart.ListFile])
		m.Settles(2)
		m.Plant(machinetest.Removable, old)
		m.Plant(machinetest.ManagerCopy, old)
		m.RootFiles()[rootpart.ListFile] = before
		for name := range m.ESP.Files {
			if deleted && strings.Contains(path.Base(name), "eventlog") {
				delete(m.ESP.Files, name)
			}
		}
		record := m.PolicyRecord()
		m.Printed.Reset()
		m.Typed = []string{m.RecoveryKey(), "y", "y"}
		m.Ends("system")
		if said := m.Printed.String(); !strings.Contains(said, "does not know the boot manager") || strings.Contains(said, "Accepted.") {
			t.Errorf("it says %s", said)
		}
		if now := m.PolicyRecord(); now.Programs != record.Programs || len(now.Branches) != len(record.Branches) || now.Branches[0] != record.Branches[0] {
			t.Errorf("the record was %+v, and is %+v", record, now)
		}
		m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
		m.Ends("system")
		m.Runs(2)
	}
}
