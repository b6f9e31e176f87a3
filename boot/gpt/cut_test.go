package gpt

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

// grownTable is sample with partitions 3 to 6 added, as the first boot does.
func grownTable(sectors uint64) *Table {
	t := sample(sectors, 512)
	t.Partitions[1].Last = 9999
	for i := range 4 {
		first := uint64(10000 + 2000*i)
		t.Partitions = append(t.Partitions, Partition{
			Number: 3 + i, Type: typeRoot, UUID: uuid(byte(10 + i)), First: first, Last: first + 1999, Label: fmt.Sprint("new-", i)})
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
	return t
}

// oneOf returns an error unless the disk reads as one of the tables.
func oneOf(d *blocktest.Disk, tables ...*Table) error {
	sectors := uint64(d.Size() / 512)
	got, _, err := Read(d, sectors, 512)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if equal(got, t) {
			return nil
		}
	}
	return fmt.Errorf("neither the old nor the new table: %d partitions", len(got.Partitions))
}

type cutCase struct {
	name     string
	base     func(*testing.T) *blocktest.Disk
	old, new *Table
}

func cutCases() []cutCase {
	old, next := sample(diskSectors, 512), grownTable(diskSectors)
	damaged := func(lba int64) func(*testing.T) *blocktest.Disk {
		return func(t *testing.T) *blocktest.Disk {
			d := written(t, old)
			patch(t, d, lba, 56, []byte{0xff}, false)
			return d
		}
	}
	return []cutCase{
		{"both good", func(t *testing.T) *blocktest.Disk { return written(t, old) }, old, next},
		{"primary damaged", damaged(1), old, next},
		{"alternate damaged", damaged(diskSectors - 1), old, next},
		{"alternate of the cut before", func(t *testing.T) *blocktest.Disk {
			d := written(t, old)
			third := sample(diskSectors, 512)
			third.Partitions = third.Partitions[:1]
			array, err := third.encodeEntries()
			if err != nil {
				t.Fatal(err)
			}
			putEntries(t, d, diskSectors-1, array)
			return d
		}, old, next},
		{"disk grew", func(t *testing.T) *blocktest.Disk {
			d := blocktest.New(2*diskSectors*512, blocktest.Hostile)
			if _, err := d.WriteAt(contents(t, written(t, old)), 0); err != nil {
				t.Fatal(err)
			}
			return d
		}, sample(2*diskSectors, 512), grownTable(2 * diskSectors)},
	}
}

// FAULTS 42: the old or the new table can be read whenever the power fails,
// also during the write that finishes the job after the first cut.
func TestPowerCuts(t *testing.T) {
	for _, c := range cutCases() {
		t.Run(c.name, func(t *testing.T) {
			r := blocktest.Record(c.base(t))
			if err := c.new.Write(r); err != nil {
				t.Fatal(err)
			}
			finish := func(r *blocktest.Recorder) error { return c.new.Write(r) }
			n, err := r.Nested(blocktest.Options{}, finish, func(cut blocktest.Cut) error { return oneOf(cut.Disk, c.old, c.new) })
			if err != nil {
				t.Error(err)
			}
			if got, health := mustRead(t, r.Disk(), 512); !health.OK() || !equal(got, c.new) {
				t.Errorf("without a cut: %v, %+v", health, got)
			}
			t.Logf("%d states", n)
		})
	}
}

// FAULTS 42: on a disk without a table, the first Sync is the earliest moment
// at which there must be one.
func TestPowerCutsOnABlankDisk(t *testing.T) {
	r := blocktest.Record(blocktest.New(diskSectors*512, blocktest.Hostile))
	table := sample(diskSectors, 512)
	if err := table.Write(r); err != nil {
		t.Fatal(err)
	}
	readable := 0
	n, err := r.Cuts(blocktest.Options{}, func(cut blocktest.Cut) error {
		if _, _, err := Read(cut.Disk, diskSectors, 512); err != nil {
			if strings.Contains(cut.String(), "epoch 2") {
				return err
			}
			return nil
		}
		readable++
		return oneOf(cut.Disk, table)
	})
	if err != nil || readable == 0 {
		t.Errorf("%d of %d states readable: %v", readable, n, err)
	}
}

// withoutSync is the mutant: a disk whose flushes were forgotten.
type withoutSync struct{ block.Device }

func (withoutSync) Sync() error { return nil }

func TestCutsFindTheMissingSync(t *testing.T) {
	c := cutCases()[0]
	r := blocktest.Record(c.base(t))
	if err := c.new.Write(withoutSync{r}); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Cuts(blocktest.Options{}, func(cut blocktest.Cut) error { return oneOf(cut.Disk, c.old, c.new) }); err == nil {
		t.Errorf("the mutant survived %d states", n)
	}
}

// FAULTS 42, 82: a disk that fails in the middle is like a power cut, and
// Write says so.
func TestDiskErrors(t *testing.T) {
	c := cutCases()[0]
	for _, injected := range []error{syscall.EIO, syscall.ENOSPC} {
		for _, f := range []blocktest.Fault{{Write: 1}, {Write: 2}, {Write: 3}, {Write: 4}, {Write: 5}, {Sync: 1}, {Sync: 2}} {
			f.Err, f.Sticky = injected, true
			r := blocktest.Record(c.base(t))
			r.Inject(f)
			if err := c.new.Write(r); !errors.Is(err, injected) {
				t.Errorf("%+v: Write returned %v", f, err)
			}
			if _, err := r.Cuts(blocktest.Options{}, func(cut blocktest.Cut) error { return oneOf(cut.Disk, c.old, c.new) }); err != nil {
				t.Errorf("%+v: %v", f, err)
			}
		}
	}
}
