package install

import (
	"context"
	"fmt"
	"slices"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/boot/words"
)

// errChanged is returned for a disk whose partition table is not the one of the plan.
var errChanged = words.Errorf(words.InTableChanged)

// largestFree is the largest run of free space, in whole pieces of layout.Align: its first
// sector, and its sectors. Other runs of free space are left alone.
func largestFree(t *gpt.Table) (first, sectors uint64) {
	align := uint64(layout.Align / t.SectorSize)
	for _, e := range t.Free() {
		start, end := (e.First+align-1)/align*align, (e.Last+1)/align*align
		if end > start && end-start > sectors {
			first, sectors = start, end-start
		}
	}
	return first, sectors
}

// FreeSpace is the largest run of free space in bytes.
func FreeSpace(t *gpt.Table) int64 {
	_, sectors := largestFree(t)
	return int64(sectors) * int64(t.SectorSize)
}

// TableBeside adds what an installation makes to the table of a disk with other systems:
// an ESP of its own and the first system partition, at the start of the largest run of
// free space. The machine makes the others in the rest of it. Partitions that are there
// stay as they are. An error says why the disk's free space cannot be taken.
func TableBeside(e ESP, ids IDs, have *gpt.Table, health gpt.Health) (*gpt.Table, error) {
	r := e.Release
	if len(r.RootHash) != len(verity.Root{}) {
		return nil, fmt.Errorf("root hash has %d bytes, want %d", len(r.RootHash), len(verity.Root{}))
	}
	if !health.OK() {
		return nil, words.Errorf(words.InTableRepair, health)
	}
	if err := have.Replaceable(); err != nil {
		return nil, words.Errorf(words.InTableFixed, err)
	}
	for _, p := range have.Partitions {
		if role := layout.RoleOf(p); role != 0 && role != layout.ESP {
			return nil, words.Errorf(words.InOwnLabel, p.Number, p.Label, p.Number)
		}
	}
	least, err := layout.LeastDisk(e.size(), r.SlotSize)
	if err != nil {
		return nil, err
	}
	need := least - 2*layout.Align // without the room for the tables
	first, sectors := largestFree(have)
	if room := int64(sectors) * int64(have.SectorSize); room < need {
		return nil, words.Errorf(words.InFreeTooSmall, ErrNoRoom, room>>20, need>>20)
	}
	t := *have
	t.Partitions = slices.Clone(have.Partitions)
	unit := uint64(have.SectorSize)
	system := first + uint64(e.size())/unit
	layout.Insert(&t, layout.ESP, ids.ESP, first, system-1)
	layout.Insert(&t, layout.SystemA, layout.SystemUUID(verity.Root(r.RootHash)), system, system+uint64(r.SlotSize)/unit-1)
	return &t, t.Validate()
}

// unchanged refuses a disk whose table is not the one that a plan began with.
func unchanged(d Target, before *gpt.Table) error {
	if err := d.Uncached(); err != nil {
		return err
	}
	now, health, err := gpt.Read(d, before.Sectors, before.SectorSize)
	if err == nil && (!health.OK() || now.Disk != before.Disk || !slices.Equal(now.Partitions, before.Partitions)) {
		err = errChanged
	}
	return err
}

// Tables are a disk's before an installation beside others, and what TableBeside made of
// it.
type Tables struct{ Before, After *gpt.Table }

// InstallBeside writes the release into the free space of a disk, reads it back, and then
// adds its partitions to the table.
//
// The order: ESP and system image are written, flushed and read back where no partition
// leads; the table comes last. Cut anywhere before that, the disk is what it was. While
// the table is written one of its copies is good, the old one or the new one, each as a
// whole (gpt.Table.Write), and both have every partition that was there. Cut after it, the
// installation is whole. Nothing else outside the free space is ever written.
func InstallBeside(ctx context.Context, d Target, tables Tables, s *Source, ids IDs, progress Progress) error {
	if err := unchanged(d, tables.Before); err != nil {
		return err
	}
	if err := writeContents(ctx, d, tables.After, s, ids, progress); err != nil {
		return err
	}
	// It took minutes, in which another program may have made a partition.
	if err := unchanged(d, tables.Before); err != nil {
		return err
	}
	return writeTable(d, tables.After)
}
