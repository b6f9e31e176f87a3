package install

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/builder/install/installtest"
)

// small is the size of the slots before they have grown to large. The image of a release
// has the size of large.
const (
	small = 2 * mib
	large = installtest.ImageSize
)

// newLarge builds a release that needs the grown slots.
func newLarge(t *testing.T) string {
	return newBuild(t, func(c *contract.Contract) { c.SlotSize = large })
}

// grownDisk is a disk with a machine whose slots were small and have grown.
func grownDisk(t *testing.T) (*blocktest.Disk, *gpt.Table) {
	t.Helper()
	s := open(t, newBuild(t, nil))
	r := *s.ESP.Release
	r.SlotSize, r.ImageSize = small, small
	s.ESP.Release = &r
	table, err := Table(s.ESP, randomIDs(t), diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := layout.NewPlan(table, small, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	growth, err := layout.Grow(plan.Table, large, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := blocktest.New(diskSize, blocktest.Zero)
	if err := growth.Table.Write(d); err != nil {
		t.Fatal(err)
	}
	formatRoot(t, d, growth.Table, rootheader.Label, tokens())
	return d, growth.Table
}

// A grown machine is installed again with its root partition: the slots keep what lies behind
// that, since there is no room for them before it. Cut anywhere, it can be done again.
// FAULTS 42, 43
func TestCutKeepsGrown(t *testing.T) {
	base, was := grownDisk(t)
	s := open(t, newLarge(t))
	p := plan(t, s, base, true)
	if err := p.Err(true); err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, part := range p.Partitions {
		if part.Kept {
			kept++
		}
	}
	if len(p.Kept.More) != 2 || kept != 3 || len(p.Table.Partitions) != 5 {
		t.Fatalf("keeps %+v: %+v", p.Kept, p.Table)
	}
	first, err := layout.NewPlan(p.Table, large, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []layout.Role{layout.SystemA, layout.SystemB} {
		if size, err := layout.Size(first.Table, r); err != nil || size != large {
			t.Errorf("after the first boot, %s has %d bytes, %v", r, size, err)
		}
	}
	recorder := blocktest.Record(base)
	if err := Install(t.Context(), target{recorder}, p.Table, s, p.IDs, quiet); err != nil {
		t.Fatal(err)
	}
	count := map[int]int{} // by the number of partitions
	states, err := recorder.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		have, _, err := gpt.Read(c.Disk, diskSize/512, 512)
		if err != nil {
			return err
		}
		root, err := FindRoot(c.Disk, diskSize/512, 512)
		if err != nil || root.Partition != p.Kept.Partition || !slices.Equal(root.More, p.Kept.More) {
			return fmt.Errorf("root partition %+v: %w", root, err)
		}
		count[len(have.Partitions)]++
		if n := len(have.Partitions); n == len(was.Partitions) || n == 3 {
			return nil
		}
		return installed(c.Disk, have, s)
	})
	if err != nil {
		t.Error(err)
	}
	if len(count) != 3 || count[3] == 0 || count[5] == 0 || count[8] == 0 {
		t.Errorf("states by the number of partitions: %v", count)
	}
	again(t, recorder, states, true, newLarge(t))
}

// A release of the small slots is installed as on any disk: the initagent in it may be one
// that knows no second extents.
func TestKeepsNoExtentsForSmallSlots(t *testing.T) {
	d, _ := grownDisk(t)
	s := open(t, newLarge(t))
	r := *s.ESP.Release
	r.SlotSize, r.ImageSize = small, small
	s.ESP.Release = &r
	table, err := Table(s.ESP, randomIDs(t), diskSize/512, 512, plan(t, s, d, true).Kept)
	if err != nil || len(table.Partitions) != 3 || bytesOf(table, layout.SystemA) != small {
		t.Errorf("%+v, %v", table, err)
	}
}

// Too large slots are refused in words, and strange extents are another system's partitions.
func TestGrownRefuses(t *testing.T) {
	d, table := grownDisk(t)
	s := open(t, newBuild(t, func(c *contract.Contract) { c.SlotSize = 4 * mib }))
	if err := plan(t, s, d, true).Err(true); err == nil || !strings.Contains(err.Error(), "the root partition cannot be kept: this release needs the first 521 MiB of /dev/sda, and the partition begins at 519 MiB") {
		t.Errorf("larger slots still: %v", err)
	}
	i := slices.IndexFunc(table.Partitions, func(p gpt.Partition) bool { return layout.RoleOf(p) == layout.MoreSystemB })
	table.Partitions[i].Label = layout.MoreSystemA.Label()
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	s = open(t, newLarge(t))
	if p := plan(t, s, d, true); p.Err(true) == nil {
		t.Errorf("two second extents of one slot: %+v", p.Table)
	}
	if p := plan(t, s, d, false); p.Err(true) != nil {
		t.Errorf("the disk cannot be erased: %v", p.Err(true))
	}
}
