package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestRepair(t *testing.T) { testRepair(t, inventorytest.New(t)) }

// A slot that has grown is repaired in both its extents.
func TestRepairGrown(t *testing.T) {
	m := inventorytest.New(t)
	m.Grow()
	testRepair(t, m)
}

func testRepair(t *testing.T, m *inventorytest.Machine) {
	m.Install(layout.SlotA, "os_7.efi")
	m.Install(layout.SlotB, "os_8+3.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	place := bootinfo.Place{Directories: []string{t.TempDir()}}
	noted := func() []journal.Entry {
		t.Helper()
		entries, err := place.Journal()
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	run := func(code int, args []string, wants ...string) string {
		t.Helper()
		got, out, errs := commandtest.Run(cmd(take, place), args...)
		if got != code {
			t.Errorf("repair %q: exit code %d, want %d\n%s%s", args, got, code, out, errs)
		}
		for _, want := range wants {
			if !strings.Contains(out+errs, want) {
				t.Errorf("repair %q lacks %q:\n%s%s", args, want, out, errs)
			}
		}
		return out
	}
	spoil := func(partition layout.Role, at int64) {
		t.Helper()
		if _, err := m.Partition(partition).WriteAt([]byte{0xff, 0xfe}, at); err != nil {
			t.Fatal(err)
		}
	}
	run(0, nil, "slot a: nothing to repair", "slot b: nothing to repair")
	if n := noted(); len(n) > 0 {
		t.Errorf("noted %v", n)
	}
	release, err := place.Alone()
	if err != nil {
		t.Fatal(err)
	}
	run(1, nil, "an update is at work")
	release()
	spoil(layout.SlotA.Verity(), 2*4096)
	spoil(layout.SlotA.Verity(), 5) // the superblock
	run(0, []string{"a"}, "slot a: whole again; 0 data blocks and 2 hash blocks written")
	if n := noted(); len(n) != 1 || n[0].Kind != journal.Repaired || n[0].Version != 7 || n[0].Slot != layout.SlotA {
		t.Errorf("noted %+v", n)
	}
	// The blocks of version 7 are all alike but for where the text is cut.
	spoil(layout.SlotA.System(), 8*4096)
	spoil(layout.SlotB.System(), 9*4096)
	out := run(0, []string{"--json"})
	var outcomes []outcome
	if err := json.Unmarshal([]byte(out), &outcomes); err != nil || len(outcomes) != 2 || !outcomes[0].Whole || outcomes[0].Report.Data != 1 {
		t.Errorf("%v: %s", err, out)
	}
	run(2, []string{"c"}, "usage: repair")
}

// What nothing holds is said to be lost.
func TestRepairLost(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_7.efi")
	data, tree := m.Partition(layout.SlotA.System()), m.Partition(layout.SlotA.Verity())
	for _, at := range []int64{0, 4096, 8192} {
		if _, err := data.WriteAt([]byte{0xff}, at); err != nil {
			t.Fatal(err)
		}
		if _, err := tree.WriteAt([]byte{0xff}, at); err != nil {
			t.Fatal(err)
		}
	}
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	code, out, errs := commandtest.Run(cmd(take, bootinfo.Place{}))
	if code != 1 || !strings.Contains(out+errs, "damaged") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
	if code, _, errs := commandtest.Run(cmd(take, bootinfo.Place{}), "b"); code != 1 || !strings.Contains(errs, "no UKI names the content") {
		t.Errorf("%d: %s", code, errs)
	}
}

func TestUse(t *testing.T) {
	take := func() (*inventory.Inventory, error) { return nil, errors.New("no disk") }
	commandtest.Use(t, cmd(take, bootinfo.Place{}))
	if code, _, errs := commandtest.Run(cmd(take, bootinfo.Place{})); code != 1 || errs != "repair: no disk\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
