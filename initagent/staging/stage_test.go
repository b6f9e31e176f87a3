package staging_test

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/staging"
)

// A release is staged, tried, blessed, and becomes what later ones fall back to.
func TestStage(t *testing.T) { // FAULTS 74
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Wants("test_1.efi", "test_2+2-1.efi")
	m.Holds(5, 1, 2)
	if s := m.RunningSlot(); s != layout.SlotB || m.RootFiles()[staging.NoteFile] != nil {
		t.Errorf("slot %s runs, and the note says %q", s, m.RootFiles()[staging.NoteFile])
	}
	// The fallback unlocks before the bless.
	m.Rename("test_2+2-1.efi", "")
	m.Runs(1)
	m.Holds(5, 1)
}

func TestStageAndBless(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Wants("test_1.efi", "test_2.efi")
	m.Holds(5, 1, 2)
	m.Rename("test_2.efi", "test_2+0.efi")
	m.Runs(1)
	if !strings.Contains(m.Said.String(), "version 2 unlocks nothing any more") {
		t.Errorf("it says\n%s", m.Said.String())
	}
	m.Holds(5, 1)
}

// The floor rises after a bless, and not before. FAULTS 51
func TestFloorRises(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Runs(2)
	m.Holds(5, 1, 2)
	m.Bless()
	m.Runs(2, "test_1.efi is under the floor")
	m.Wants("test_1+0.efi", "test_2.efi")
	m.Holds(6, 2)
	m.Ops = nil
	m.Runs(2)
	if len(m.Written("tpm"))+len(m.Written("esp ")) > 0 {
		t.Errorf("an ordinary boot writes %q", m.Ops)
	}
}

// The same with the first one's slot put back as well, in place of the fallback's:
// it is started once, gets no key, and gives itself up. FAULTS 2, 73
func TestReplacedWithItsSlot(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	kept := m.ESP.Files["EFI/Linux/test_1.efi"]
	for v := contract.Version(2); v <= 3; v++ {
		m.Fetch(machinetest.NewRelease(t, uint64(v), 5, machinetest.Pinned))
		m.Runs(v)
		m.Bless()
		m.Runs(v)
	}
	first := m.Releases[1]
	slotB, err := m.Partition(layout.SlotB.System())
	m.Must(err)
	_, err = slotB.WriteAt(first.Image, 0)
	m.Must(err)
	tree, err := m.Partition(layout.SlotB.Verity())
	m.Must(err)
	_, err = verity.Generate(t.Context(), slotB, first.Contract.VerityParams(), tree, func(int64) {})
	m.Must(err)
	table, _, err := m.Table()
	m.Must(err)
	m.Must(layout.Rename(table, layout.SlotB, layout.SystemUUID(first.Contract.Root()), layout.VerityUUID(first.Contract.Root())).Write(m.Disk))
	m.ESP.Files["EFI/Linux/test_1.efi"] = kept
	m.Rename("test_2.efi", "test_2+0.efi")
	m.Vars["LoaderEntryOneShot"] = machinetest.EFIVariable{Data: []byte("test_1.efi")}
	m.Boot()
	if m.Agent.Contract.Version != 1 || m.OpenVolume != nil || strings.Contains(m.Printed.String(), "Recovery key") {
		t.Fatalf("version %s runs, and asks %q:\n%s", m.Agent.Contract.Version, m.Printed.String(), m.Said.String())
	}
	if m.ESP.Files["EFI/Linux/test_1+0.efi"] == nil {
		t.Errorf("it did not give itself up:\n%s", m.Said.String())
	}
}

// A third release takes the first one's slot. The first one's UKI, put back, gets
// no key, and the machine comes back by itself. FAULTS 2, 73
func TestReplacedForGood(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	kept := m.ESP.Files["EFI/Linux/test_1.efi"]
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	m.Runs(3)
	m.Bless()
	m.Runs(3)
	m.Wants("test_2.efi", "test_3.efi")
	m.Holds(5, 2, 3)
	if s := m.RunningSlot(); s != layout.SlotA {
		t.Errorf("slot %s runs", s)
	}
	// Somebody with the disk in hand makes it the one that is started.
	m.ESP.Files["EFI/Linux/test_1.efi"] = kept
	m.Rename("test_2.efi", "test_2+0.efi")
	m.Rename("test_3.efi", "test_3+0.efi")
	m.Boot()
	if m.Agent.Contract.Version != contract.Version(1) || m.OpenVolume != nil {
		t.Fatalf("version %s runs:\n%s", m.Agent.Contract.Version, m.Said.String())
	}
}

// A release that takes the machine down whenever it is looked at is given up: the
// running system has no tries that would end it. FAULTS 78
func TestStageGivesUp(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Snapshot = func() {
		if len(m.Ops) > 0 && m.Ops[len(m.Ops)-1] == "root keep "+staging.AttemptsFile {
			panic(machinetest.Halt{How: "death"})
		}
	}
	for range staging.MaxAttempts {
		m.Ops = nil
		if end := m.Boot(); end != "death" {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
	}
	m.Ops = nil
	m.Runs(1, "the machine went down 3 times while this was staged")
	m.Runs(1)
	m.Wants("test_1.efi")
	m.Snapshot = nil
	m.Fetch(m.Releases[2])
	m.Runs(2)
}
