package agent

import (
	"bytes"
	mrand "math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upkeep"
)

// backedUp is a machine whose boot manager was replaced and revoked, with the ESP's boot
// managers from a backup of before.
func backedUp(t *testing.T) (m *machine, old []byte) {
	t.Helper()
	m, old = exchanged(t, pinned)
	m.settles(2)
	m.must(m.revoked(old))
	m.plant(removable, old)
	m.plant(managerCopy, old)
	return m, old
}

// losesKeys clears the firmware's keys, but for what it refuses.
func (m *machine) losesKeys() {
	dbx := m.vars["dbx"]
	m.vars = newVariables()
	m.vars["dbx"] = dbx
}

// hasCopies checks that the root partition has copies of this boot manager and of no
// other.
func (m *machine) hasCopies(manager []byte) {
	m.t.Helper()
	want, err := authenticode.Digest(manager)
	m.must(err)
	copies, err := upkeep.Keeper(&m.agent.Host).Managers()
	if err != nil || len(copies) != 2 {
		m.t.Fatalf("%d copies, %v", len(copies), err)
	}
	for _, c := range copies {
		if got, err := authenticode.Digest(c); err != nil || got != want {
			m.t.Errorf("there is a copy of another boot manager (%v)", err)
		}
	}
}

// Keys that are enrolled again, over an ESP from a backup whose boot manager is in dbx by
// now: the good one takes its place first, and the machine opens by itself. Cut anywhere,
// it comes up the same way. FAULTS 110
func TestEnrollReplacesRevoked(t *testing.T) {
	m, old := backedUp(t)
	m.losesKeys()
	m.typed = []string{m.recoveryKey(), "y"}
	w := m.world(true, nil)
	m.ends("system", removable+" is the one of version 2 now")
	m.runs(2)
	m.must(m.revoked(old))
	m.owner = true
	states, end := m.record(w, mrand.New(mrand.NewPCG(51, 52)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	for _, s := range states {
		m.powerOn(s.world)
		m.said.Reset()
		if end := m.run(); end != "system" || m.openVolume == nil || m.vars["SecureBoot"].data[0] != 1 {
			t.Errorf("%s: it ends in %s:\n%s", s.how, end, m.said.String())
		}
		m.must(m.revoked(old))
	}
}

// Without a good one at hand nothing is enrolled, and the message says what to do.
func TestEnrollWithoutGoodManager(t *testing.T) {
	m, _ := backedUp(t)
	for name := range m.rootFiles() {
		if strings.HasPrefix(name, rootpart.Copies) && strings.HasSuffix(strings.ToLower(name), "x64.efi") {
			delete(m.rootFiles(), name)
		}
	}
	m.losesKeys()
	m.typed = []string{m.recoveryKey(), "y"}
	m.ends("system", "there is no newer boot manager at hand", "`esp-rebuild` at the recovery console")
	if len(m.vars["PK"].data) > 0 {
		t.Error("the machine has a PK, and nothing that starts")
	}
}

// A backup of the ESP in a boot that enforces nothing: the old boot manager is not copied
// over the good one, which is put back. FAULTS 110
func TestRevokedIsNotCopied(t *testing.T) {
	m, _ := backedUp(t)
	m.losesKeys()
	for range 2 {
		m.typed = []string{m.recoveryKey(), "n", "n"}
		m.clock = m.clock.AddDate(0, 0, 8) // every byte is compared
		m.ends("system")
		m.hasCopies(otherManager)
		for _, name := range []string{removable, managerCopy} {
			if !m.hasManager(name, otherManager) {
				t.Errorf("%s is not put back:\n%s", name, m.said.String())
			}
		}
	}
}

// The same where the firmware takes no revocation, and starts the old one: its owner types
// the recovery key and accepts nothing, and the next start is as ever.
func TestReplacedIsPutBack(t *testing.T) {
	m, old := exchanged(t, pinned)
	m.refuse = syscall.EINVAL
	m.settles(2)
	if len(m.vars["dbx"].data) > 0 {
		t.Fatal("the firmware has taken it: this proves nothing")
	}
	planted := m.world(true, nil)
	for _, answers := range [][]string{{"n"}, {"y", ""}} {
		m.powerOn(planted)
		m.plant(removable, old)
		m.plant(managerCopy, old)
		m.typed = append([]string{m.recoveryKey()}, answers...)
		m.ends("system", "a boot manager that was replaced is back", "is put back")
		m.hasCopies(otherManager)
		m.runs(2)
	}
	// Accepted by the word, it stays.
	m.powerOn(planted)
	m.plant(removable, old)
	m.plant(managerCopy, old)
	m.typed = []string{m.recoveryKey(), "y", "weaker"}
	m.ends("system")
	m.clock = m.clock.AddDate(0, 0, 8)
	m.runs(2)
	if !m.hasManager(removable, m.manager) {
		t.Error("what the owner has accepted is taken away")
	}
	m.runs(2)
}

// Root of the running system puts back an old boot manager, and the list of a time before
// it was replaced: the TPM's record does not know it, and a "y" is not enough. FAULTS 94
func TestOlderListHidesNoManager(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		m, old := exchanged(t, pinned)
		m.refuse = syscall.EINVAL
		before := bytes.Clone(m.rootFiles()[rootpart.ListFile])
		m.settles(2)
		m.plant(removable, old)
		m.plant(managerCopy, old)
		m.rootFiles()[rootpart.ListFile] = before
		for name := range m.esp.files {
			if deleted && strings.Contains(path.Base(name), "eventlog") {
				delete(m.esp.files, name)
			}
		}
		record := m.policyRecord()
		m.printed.Reset()
		m.typed = []string{m.recoveryKey(), "y", "y"}
		m.ends("system")
		if said := m.printed.String(); !strings.Contains(said, "does not know the boot manager") || strings.Contains(said, "Accepted.") {
			t.Errorf("it says %s", said)
		}
		if now := m.policyRecord(); now.Programs != record.Programs || len(now.Branches) != len(record.Branches) || now.Branches[0] != record.Branches[0] {
			t.Errorf("the record was %+v, and is %+v", record, now)
		}
		m.typed = []string{m.recoveryKey(), "y", "weaker"}
		m.ends("system")
		m.runs(2)
	}
}
