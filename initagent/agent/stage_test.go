package agent

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

// A release is staged, tried, blessed, and becomes what later ones fall back to.
func TestStage(t *testing.T) { // FAULTS 74
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.wants("test_1.efi", "test_2+2-1.efi")
	m.holds(5, 1, 2)
	if s := m.runningSlot(); s != layout.SlotB || m.rootFiles()[stagedFile] != nil {
		t.Errorf("slot %s runs, and the note says %q", s, m.rootFiles()[stagedFile])
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
	if len(m.written("tpm"))+len(m.written("esp")) > 0 {
		t.Errorf("an ordinary boot writes %q", m.ops)
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
	if m.agent.contract.Version != contract.Version(1) || m.openVolume != nil {
		t.Fatalf("version %s runs:\n%s", m.agent.contract.Version, m.said.String())
	}
}
