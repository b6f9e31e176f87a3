package layout

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/verity"
)

const gib = 1 << 30

// installed is what a manual installation leaves on a disk of that many bytes.
func installed(size int64, sector int, system int64) *gpt.Table {
	s := uint64(sector)
	esp := gpt.Partition{Number: 1, Type: TypeESP, UUID: gpt.GUID{1}, First: Align / s, Last: (Align+ESPSize)/s - 1, Label: ESPLabel}
	return &gpt.Table{
		Disk: gpt.GUID{9}, SectorSize: sector, Sectors: uint64(size) / s,
		Partitions: []gpt.Partition{esp, {Number: 2, Type: TypeRoot, UUID: gpt.GUID{2}, First: esp.Last + 1, Last: esp.Last + uint64(system)/s, Label: "system-a"}},
	}
}

// complete reports whether a table has all six partitions, large enough for the slot size.
func complete(t *gpt.Table, slotSize int64) bool {
	plan, err := NewPlan(t, slotSize, rand.Reader)
	return err == nil && len(plan.Changes) == 0
}

func TestPlan(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		table := installed(8*gib, sector, 300<<20)
		plan, err := NewPlan(table, 1*gib, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if len(plan.Changes) != 5 || !strings.HasPrefix(plan.Changes[0], "grow partition 2 (system-a) from 300 to 1024 MiB") {
			t.Errorf("changes: %q", plan.Changes)
		}
		if len(table.Partitions) != 2 {
			t.Error("the table that was given has changed")
		}
		if !complete(plan.Table, 1*gib) || complete(table, 1*gib) {
			t.Error("Complete does not tell a complete table from an incomplete one")
		}
		want := map[int]int64{1: ESPSize, 2: gib, 4: gib}
		end := int64(0)
		for _, p := range plan.Table.Partitions {
			off, size := plan.Table.Bytes(p)
			if off%Align != 0 || size%Align != 0 || off < end {
				t.Errorf("partition %d at %d, %d bytes: not aligned or out of order", p.Number, off, size)
			}
			if w, ok := want[p.Number]; ok && size != w {
				t.Errorf("partition %d has %d bytes, want %d", p.Number, size, w)
			}
			end = off + size
		}
		again, err := NewPlan(plan.Table, 1*gib, rand.Reader)
		if err != nil || len(again.Changes) != 0 {
			t.Errorf("a complete table is planned again: %v, %v", again, err)
		}
	}
}

// Where a table was made in part, by hand or by another version, the rest is
// made and what is there stays.
func TestPlanResumes(t *testing.T) {
	full, err := NewPlan(installed(8*gib, 512, gib), gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for missing := 3; missing <= 6; missing++ {
		part := clone(full.Table)
		part.Partitions = part.Partitions[:missing-1]
		plan, err := NewPlan(part, gib, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range part.Partitions {
			if got, _ := plan.Table.ByNumber(p.Number); got != p {
				t.Errorf("partition %d became %+v", p.Number, got)
			}
		}
		if len(plan.Changes) != 7-missing {
			t.Errorf("from %d partitions: %q", missing-1, plan.Changes)
		}
	}
}

// FAULTS 43
func TestPlanRefuses(t *testing.T) {
	with := func(change func(*gpt.Table)) *gpt.Table {
		table := installed(8*gib, 512, gib)
		change(table)
		return table
	}
	for name, c := range map[string]struct {
		table *gpt.Table
		want  string
	}{
		"small disk":   {installed(2*gib+700<<20, 512, gib), "the partition root needs 256 MiB"},
		"smaller disk": {installed(2*gib, 512, gib), "the partition system-b needs 1024 MiB"},
		"foreign":      {with(func(t *gpt.Table) { t.Partitions[1].Label = "data" }), `none has the label "system-a"`},
		"foreign type": {with(func(t *gpt.Table) { t.Partitions[1].Type = TypeLUKS }), `none has the label "system-a"`},
		"no system":    {with(func(t *gpt.Table) { t.Partitions = t.Partitions[:1] }), `none has the label "system-a"`},
		"no ESP":       {with(func(t *gpt.Table) { t.Partitions = t.Partitions[1:] }), `no partition has the label "esp"`},
		"two alike": {with(func(t *gpt.Table) {
			t.Partitions = append(t.Partitions, gpt.Partition{Number: 7, Type: TypeRoot, UUID: gpt.GUID{7}, First: 6 << 21, Last: 6<<21 + 7, Label: "system-a"})
		}), "2 and 7 could both be"},
		"two alike of those it makes": {with(func(t *gpt.Table) {
			for n := range 2 {
				at := uint64(6+n) << 21
				t.Partitions = append(t.Partitions, gpt.Partition{Number: 7 + n, Type: TypeLUKS, UUID: gpt.GUID{7, byte(n)}, First: at, Last: at + 7, Label: "root"})
			}
		}), "7 and 8 could both be"},
		"somebody's partition follows": {with(func(t *gpt.Table) {
			at := t.Partitions[1].Last + 1
			t.Partitions = append(t.Partitions, gpt.Partition{Number: 3, Type: TypeData, UUID: gpt.GUID{7}, First: at, Last: at + 7, Label: "mine"})
		}), "free space that it may have has 0 MiB"},
		"no room behind": {with(func(t *gpt.Table) {
			t.Partitions[1].Last = t.Partitions[1].First + 2047
			next := t.Partitions[1].Last + 1
			t.Partitions = append(t.Partitions, gpt.Partition{Number: 3, Type: TypeRootVerity, UUID: gpt.GUID{3}, First: next, Last: next + 100<<11, Label: "verity-a"})
		}), "no free space behind it"},
	} {
		plan, err := NewPlan(c.table, gib, rand.Reader)
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, plan, err, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	root, err := verity.ParseRoot("00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	if got := SystemUUID(root).String(); got != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Errorf("system partition is called %s", got)
	}
	if got := VerityUUID(root).String(); got != "01234567-89ab-cdef-0123-456789abcdef" {
		t.Errorf("verity partition is called %s", got)
	}
	plan, err := NewPlan(installed(8*gib, 512, gib), gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := FindSlot(plan.Table, SystemUUID(root), VerityUUID(root)); s.Valid() {
		t.Errorf("found slot %s in a table that names none", s)
	}
	named := Rename(plan.Table, SlotB, SystemUUID(root), VerityUUID(root))
	if s, tree := FindSlot(named, SystemUUID(root), VerityUUID(root)); s != SlotB || !tree {
		t.Errorf("found slot %s, tree named %v", s, tree)
	}
	half := Rename(plan.Table, SlotA, SystemUUID(root), gpt.GUID{7})
	if s, tree := FindSlot(half, SystemUUID(root), VerityUUID(root)); s != SlotA || tree {
		t.Errorf("found slot %s, tree named %v", s, tree)
	}
}

type file struct{ *os.File }

func TestPlanAgainstSgdisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8 * gib); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "sgdisk", "-n", "1:1M:+512M", "-t", "1:ef00", "-c", "1:esp", "-n", "2:0:+300M", "-t", "2:8304", "-c", "2:system-a", path)
	table, _, err := gpt.Read(f, 8*gib/512, 512)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(table, gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Table.Write(file{f}); err != nil {
		t.Fatal(err)
	}
	if out := testkit.Run(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	out := testkit.Run(t, "sgdisk", "-p", path)
	for _, label := range []string{"EF00  esp", "8304  system-a", "verity-a", "8304  system-b", "verity-b", "8309  root"} {
		if !bytes.Contains([]byte(out), []byte(label)) {
			t.Errorf("sgdisk -p lacks %q:\n%s", label, out)
		}
	}
	// The slots that are made are mounted by nobody because of their type. One that was made
	// without the bit is taken as it is, and with it, too.
	for i, want := range []string{"0000000000000000", "0000000000000000", "8000000000000000", "8000000000000000", "8000000000000000", "0000000000000000"} {
		number := i + 1
		if out := testkit.Run(t, "sgdisk", "-i", fmt.Sprint(number), path); !strings.Contains(out, "Attribute flags: "+want) {
			t.Errorf("partition %d has not the attributes %s:\n%s", number, want, out)
		}
	}
	for _, how := range []string{"set", "clear"} {
		for number := 2; number <= 5; number++ {
			testkit.Run(t, "sgdisk", "--attributes="+fmt.Sprintf("%d:%s:63", number, how), path)
		}
		table, _, err := gpt.Read(f, 8*gib/512, 512)
		if err != nil || !complete(table, gib) {
			t.Errorf("%s bit 63 of the slots: %+v, %v", how, table, err)
		}
	}
}
