package layout

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"halogenos.internal/boot/gpt"
)

// Types of other systems' partitions: Windows's reserved, data and recovery.
var (
	typeReserved = gpt.MustGUID("e3c9e316-0b5c-4db8-817d-f92df00215ae")
	typeBasic    = gpt.MustGUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
	typeRecovery = gpt.MustGUID("de94bba4-06d1-4d40-a16a-bfd50179d6ac")
)

// shared is a disk of 32 GiB with Windows on it as its installer lays it out, ours in the
// free space between its data and its recovery partition, and free space at the end.
func shared(t *testing.T, system int64) *gpt.Table {
	t.Helper()
	table := &gpt.Table{Disk: gpt.GUID{9}, SectorSize: 512, Sectors: 32 * gib / 512}
	for _, p := range []struct {
		number  int
		kind    gpt.GUID
		at, mib uint64
		label   string
	}{
		{1, TypeESP, 1, 100, "EFI system partition"}, {2, typeReserved, 101, 16, "Microsoft reserved partition"},
		{3, typeBasic, 117, 8192, "Basic data partition"}, {4, typeRecovery, 24 << 10, 700, "Basic data partition"},
	} {
		table.Partitions = append(table.Partitions, gpt.Partition{Number: p.number, Type: p.kind, UUID: gpt.GUID{byte(p.number), 1},
			First: p.at << 11, Last: (p.at+p.mib)<<11 - 1, Label: p.label})
	}
	first := uint64(9 << 10 << 11)
	Insert(table, ESP, gpt.GUID{50}, first, first+ESPSize/512-1)
	first += ESPSize / 512
	Insert(table, SystemA, gpt.GUID{51}, first, first+uint64(system)/512-1)
	return table
}

// Beside other systems the same partitions are made, in the free space that follows ours
// and in no other; what is somebody else's stays as it is, byte for byte.
func TestPlanBesideOthers(t *testing.T) {
	table := shared(t, gib/2)
	plan, err := NewPlan(table, gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(plan.Table.Partitions[:4], table.Partitions[:4]) {
		t.Errorf("the other system's partitions became %+v", plan.Table.Partitions[:4])
	}
	recovery := table.Partitions[3]
	for i, r := range []Role{ESP, SystemA, VerityA, SystemB, VerityB, Root} {
		p, err := Find(plan.Table, r)
		if err != nil || p.Number != 5+i {
			t.Errorf("%s is %+v, %v", r, p, err)
		}
		if p.First < table.Partitions[4].First || p.Last >= recovery.First {
			t.Errorf("%s lies at %d to %d", r, p.First, p.Last)
		}
	}
	if root, _ := Find(plan.Table, Root); root.Last != recovery.First-1 {
		t.Errorf("the root partition ends at %d, the free space at %d", root.Last, recovery.First-1)
	}
	if again, err := NewPlan(plan.Table, gib, rand.Reader); err != nil || len(again.Changes) > 0 {
		t.Errorf("planned again: %v, %v", again, err)
	}
	// The room in front of ours and the one at the end, where a root partition would fit,
	// are not for us.
	if _, err := NewPlan(shared(t, gib/2), 7270<<20, rand.Reader); !errors.Is(err, ErrForeign) {
		t.Errorf("without room for the root partition: %v", err)
	}
}

// Free space behind another system's ESP is not ours, whatever the label of that is.
func TestPlanBehindForeignESP(t *testing.T) {
	table := shared(t, gib)
	table.Partitions[0].Label = ESPLabel
	table.Partitions = slices.Delete(table.Partitions, 1, 3) // 9 GiB behind the ESP are free
	plan, err := NewPlan(table, 3*gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := Find(table, SystemA)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Role{VerityA, SystemB, VerityB, Root} {
		if p, err := Find(plan.Table, r); err != nil || p.First < ours.Last {
			t.Errorf("%s lies at %d to %d, %v", r, p.First, p.Last, err)
		}
	}
	stick := clone(table)
	stick.Partitions[0].Type, stick.Partitions[0].Label = TypeData, InstallerLabel
	if plan, err = NewPlan(stick, 3*gib, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if p, err := Find(plan.Table, VerityA); err != nil || p.First < ours.Last {
		t.Errorf("beside an installer's partition it lies at %d to %d, %v", p.First, p.Last, err)
	}
	only := clone(table) // no partition but ESPs and ours
	only.Partitions = slices.DeleteFunc(only.Partitions, func(p gpt.Partition) bool { return RoleOf(p) == 0 })
	if plan, err = NewPlan(only, 3*gib, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if p, err := Find(plan.Table, VerityA); err != nil || p.First < ours.Last {
		t.Errorf("beside two ESPs it lies at %d to %d, %v", p.First, p.Last, err)
	}
}

// The ESP that a copy of this system's boot manager was started from is another system's:
// nothing is written to it. One that has lost its label is taken where no other has it, as
// earlier releases did: a machine does not stop to start by what another program has labelled.
func TestFindESPOfAnother(t *testing.T) {
	table := shared(t, gib)
	if p, err := FindESP(table, table.Partitions[0].UUID); !errors.Is(err, ErrForeign) || p.Number != 0 {
		t.Errorf("Windows's ESP is ours: %+v, %v", p, err)
	}
	for i := range table.Partitions { // there is none but the one that was started from
		if ESP.is(table.Partitions[i]) {
			table.Partitions[i].Label = "EFI"
		}
	}
	if p, err := FindESP(table, table.Partitions[0].UUID); err != nil || p.Number != table.Partitions[0].Number {
		t.Errorf("the only ESP, labelled by somebody else: %+v, %v", p, err)
	}
	own := &gpt.Table{Disk: gpt.GUID{9}, SectorSize: 512, Sectors: 32 * gib / 512}
	Insert(own, ESP, gpt.GUID{50}, 2048, 2048+ESPSize/512-1)
	Insert(own, SystemA, gpt.GUID{51}, 2048+ESPSize/512, 2048+ESPSize/512+gib/512)
	own.Partitions[0].Label = "EFI"
	if p, err := FindESP(own, gpt.GUID{50}); err != nil || p.Number != 1 {
		t.Errorf("ours without its label: %+v, %v", p, err)
	}
}

// An attacker who adds partitions chooses nothing: a slot is found by its root hash, and where two
// could be meant neither is.
func TestAddedPartitions(t *testing.T) {
	table := shared(t, gib)
	plan, err := NewPlan(table, gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	system, tree := gpt.GUID{0xaa}, gpt.GUID{0xbb}
	named := Rename(plan.Table, SlotB, system, tree)
	for _, add := range []gpt.Partition{
		{Type: TypeRoot, Label: "system-b", UUID: gpt.GUID{0xcc}},
		{Type: TypeRootVerity, Label: "verity-b", UUID: gpt.GUID{0xcc}},
		{Type: TypeLUKS, Label: "root", UUID: gpt.GUID{0xcc}},
		{Type: TypeESP, Label: "esp", UUID: gpt.GUID{0xcc}},
	} {
		for _, number := range []int{20, 0} { // after ours, or before all
			with := clone(named)
			add.Number = number
			if number == 0 {
				for i := range with.Partitions {
					with.Partitions[i].Number++
				}
				add.Number = 1
			}
			add.First = with.Partitions[3].Last + 1
			add.Last = add.First + 2047
			with.Partitions = append(with.Partitions, add)
			if add.Number == 1 {
				slices.Reverse(with.Partitions) // found whatever their order
			}
			role := RoleOf(add)
			if p, err := Find(with, role); !errors.Is(err, ErrAmbiguous) || !errors.Is(err, ErrForeign) {
				t.Errorf("a second %s: %+v, %v", role, p, err)
			}
			if p, err := FindESP(with, gpt.GUID{50}); err != nil || p.UUID != (gpt.GUID{50}) {
				t.Errorf("beside a second %s the ESP is %+v, %v", role, p, err)
			}
			s, whole := FindSlot(with, system, tree)
			if want := role != SystemB; s.Valid() != want || whole != (want && role != VerityB) {
				t.Errorf("beside a second %s the system is in slot %s, whole %v", role, s, whole)
			}
			if renamed := Rename(with, SlotB, gpt.GUID{1}, gpt.GUID{2}); role == SystemB && slices.ContainsFunc(renamed.Partitions, func(p gpt.Partition) bool { return p.UUID == gpt.GUID{1} }) {
				t.Error("one of two was renamed")
			}
		}
	}
	// The loader's name counts for an ESP that this boot has renamed.
	old := gpt.GUID{0x77}
	renamed := clone(named)
	renamed.Partitions[4].UUID = OwnESP(old, renamed.Disk)
	if p, err := FindESP(renamed, old); err != nil || p.Number != 5 {
		t.Errorf("the ESP is %+v, %v", p, err)
	}
	if _, err := FindESP(renamed, gpt.GUID{0x78}); !errors.Is(err, ErrMissing) {
		t.Errorf("an ESP of another disk: %v", err)
	}
}
