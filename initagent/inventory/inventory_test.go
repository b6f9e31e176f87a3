package inventory_test

import (
	"context"
	"errors"
	"path"
	"strings"
	"testing"
	"testing/fstest"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestInventory(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_1.efi")
	m.Install(layout.SlotB, "os_2+2-1.efi")
	m.Files[path.Join(bls.Directory, "notes.txt")] = &fstest.MapFile{Data: []byte("not ours")}
	m.Files[path.Join(bls.Directory, "os_3+0-3.efi")] = &fstest.MapFile{Data: []byte("no UKI")}
	m.Files[path.Join(bls.Directory, "os_4+0-3.efi")] = m.Files[path.Join(bls.Directory, "os_1.efi")]
	inv, err := inventory.Take(m.Hardware())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range inv.Systems {
		got = append(got, strings.Join([]string{s.File, s.State, s.Slot.String(), s.Version}, " "))
	}
	want := []string{"os_2+2-1.efi on trial, 2 tries left b 2", "os_1.efi blessed a 1", "os_4+0-3.efi bad a 1", "os_3+0-3.efi bad none "}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("systems\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i, problem := range []string{"", "", "it is os 1 inside", "PE"} {
		if have := inv.Systems[i].Problem; (have == "") != (problem == "") || !strings.Contains(have, problem) {
			t.Errorf("%s: problem %q, want %q", inv.Systems[i].File, have, problem)
		}
	}
}

// FAULTS 32
func TestVerify(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_1.efi")
	inv, err := inventory.Take(m.Hardware())
	if err != nil {
		t.Fatal(err)
	}
	s, err := inv.In(layout.SlotA)
	if err != nil {
		t.Fatal(err)
	}
	if err := inv.Verify(context.Background(), s, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Partition(layout.SlotA.System()).WriteAt([]byte{0xff}, 5*4096); err != nil {
		t.Fatal(err)
	}
	err = inv.Verify(context.Background(), s, nil)
	if corrupt, ok := errors.AsType[*verity.CorruptError](err); !ok || corrupt.Block != 5 {
		t.Errorf("a corrupt block: %v", err)
	}
	if _, err := inv.In(layout.SlotB); !errors.Is(err, inventory.ErrNoContent) {
		t.Errorf("an empty slot: %v", err)
	}
}
