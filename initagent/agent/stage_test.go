package agent

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/staging"
)

// A release is staged, tried, blessed, and becomes what later ones fall back to.
func TestStage(t *testing.T) { // FAULTS 74
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.wants("test_1.efi", "test_2+2-1.efi")
	m.holds(5, 1, 2)
	if s := m.runningSlot(); s != layout.SlotB || m.rootFiles()[staging.NoteFile] != nil {
		t.Errorf("slot %s runs, and the note says %q", s, m.rootFiles()[staging.NoteFile])
	}
	// The fallback unlocks before the bless.
	m.rename("test_2+2-1.efi", "")
	m.runs(1)
	m.holds(5, 1)
}

func TestStageAndBless(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.wants("test_1.efi", "test_2.efi")
	m.holds(5, 1, 2)
	m.rename("test_2.efi", "test_2+0.efi")
	m.runs(1)
	if !strings.Contains(m.said.String(), "version 2 unlocks nothing any more") {
		t.Errorf("it says\n%s", m.said.String())
	}
	m.holds(5, 1)
}

// The floor rises after a bless, and not before. FAULTS 51
func TestFloorRises(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.runs(2)
	m.holds(5, 1, 2)
	m.bless()
	m.runs(2, "test_1.efi is under the floor")
	m.wants("test_1+0.efi", "test_2.efi")
	m.holds(6, 2)
	m.ops = nil
	m.runs(2)
	if len(m.written("tpm"))+len(m.written("esp ")) > 0 {
		t.Errorf("an ordinary boot writes %q", m.ops)
	}
}

// The same with the first one's slot put back as well, in place of the fallback's:
// it is started once, gets no key, and gives itself up. FAULTS 2, 73
func TestReplacedWithItsSlot(t *testing.T) {
	m := provisionedMachine(t, pinned)
	kept := m.esp.files["EFI/Linux/test_1.efi"]
	for v := contract.Version(2); v <= 3; v++ {
		m.fetch(newRelease(t, uint64(v), 5, pinned))
		m.runs(v)
		m.bless()
		m.runs(v)
	}
	first := m.releases[1]
	slotB, err := m.partition(layout.SlotB.SystemNumber())
	m.must(err)
	_, err = slotB.WriteAt(first.image, 0)
	m.must(err)
	tree, err := m.partition(layout.SlotB.VerityNumber())
	m.must(err)
	_, err = verity.Generate(t.Context(), slotB, first.contract.VerityParams(), tree, func(int64) {})
	m.must(err)
	table, _, err := m.table()
	m.must(err)
	m.must(layout.Rename(table, layout.SlotB, layout.SystemUUID(first.contract.Root()), layout.VerityUUID(first.contract.Root())).Write(m.disk))
	m.esp.files["EFI/Linux/test_1.efi"] = kept
	m.rename("test_2.efi", "test_2+0.efi")
	m.vars["LoaderEntryOneShot"] = efiVariable{data: []byte("test_1.efi")}
	m.boot()
	if m.agent.Contract.Version != 1 || m.openVolume != nil || strings.Contains(m.printed.String(), "Recovery key") {
		t.Fatalf("version %s runs, and asks %q:\n%s", m.agent.Contract.Version, m.printed.String(), m.said.String())
	}
	if m.esp.files["EFI/Linux/test_1+0.efi"] == nil {
		t.Errorf("it did not give itself up:\n%s", m.said.String())
	}
}

// A third release takes the first one's slot. The first one's UKI, put back, gets
// no key, and the machine comes back by itself. FAULTS 2, 73
func TestReplacedForGood(t *testing.T) {
	m := provisionedMachine(t, pinned)
	kept := m.esp.files["EFI/Linux/test_1.efi"]
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.fetch(newRelease(t, 3, 5, pinned))
	m.runs(3)
	m.bless()
	m.runs(3)
	m.wants("test_2.efi", "test_3.efi")
	m.holds(5, 2, 3)
	if s := m.runningSlot(); s != layout.SlotA {
		t.Errorf("slot %s runs", s)
	}
	// Somebody with the disk in hand makes it the one that is started.
	m.esp.files["EFI/Linux/test_1.efi"] = kept
	m.rename("test_2.efi", "test_2+0.efi")
	m.rename("test_3.efi", "test_3+0.efi")
	m.boot()
	if m.agent.Contract.Version != contract.Version(1) || m.openVolume != nil {
		t.Fatalf("version %s runs:\n%s", m.agent.Contract.Version, m.said.String())
	}
}

// A release that takes the machine down whenever it is looked at is given up: the
// running system has no tries that would end it. FAULTS 78
func TestStageGivesUp(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.snapshot = func() {
		if len(m.ops) > 0 && m.ops[len(m.ops)-1] == "root keep "+staging.AttemptsFile {
			panic(halt{"death"})
		}
	}
	for range staging.MaxAttempts {
		m.ops = nil
		if end := m.boot(); end != "death" {
			t.Fatalf("ends in %s:\n%s", end, m.said.String())
		}
	}
	m.ops = nil
	m.runs(1, "the machine went down 3 times while this was staged")
	m.runs(1)
	m.wants("test_1.efi")
	m.snapshot = nil
	m.fetch(m.releases[2])
	m.runs(2)
}
