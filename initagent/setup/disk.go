// Package setup makes a new machine of an installed disk, in its first two boots: the
// partitions and the verity tree, the Secure Boot keys, which it enrolls, and the root
// partition. What the first boot leaves for the second is package firstboot's.
//
// It refuses to make again what the TPM knows to have been made.
package setup

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootlock"
)

// Partition makes the partitions that an installation leaves out. All come in
// one table, so a cut leaves all of them or none; their contents are made
// afterwards, and each carries a UUID that names no content until then.
//
// The same table gives a disk that was written from a disk image IDs of its own, when
// it has no root partition yet: cut, they come with the partitions or not at all. The
// firmware needs no boot entry for the next start, since a disk image brings none:
// it takes the boot manager's removable-media path. For the rest of this boot the
// loader's variables name the ESP by its old UUID (layout.OwnESP).
//
// What a disk held before must not pass for a root partition, so the place of
// its header is zeroed while no table leads there yet; and what an earlier
// installation left on the ESP goes. Cut before the table is written, all of
// this is done again.
func Partition(h *host.Host) error {
	plan, err := layout.NewPlan(h.Table, h.Contract.SlotSize, h.Random)
	if err != nil {
		return err
	}
	for _, change := range plan.Changes {
		h.Log.Say("%s: %s", h.Disk.Name, change)
	}
	if _, err := layout.Find(h.Table, layout.Root); errors.Is(err, layout.ErrMissing) {
		if err := errors.Join(clearDirectory(h), clearRoot(h, plan.Table)); err != nil {
			return err
		}
		own, changed, err := layout.OwnIDs(plan.Table, h.Contract.ImageID, h.Contract.Version.String(), h.Random)
		if err != nil {
			return err
		}
		if changed {
			h.Log.Say("%s: the disk gets UUIDs of its own, and was %v", h.Disk.Name, plan.Table.Disk)
		}
		plan.Table = own
	}
	return h.WriteTable(plan.Table)
}

func clearDirectory(h *host.Host) error {
	if !h.Left.Keys && !h.Left.Unlocked {
		return nil
	}
	err := h.WriteESP(func(dir hw.ESPDir) error {
		return removeFiles(dir, func(name string) bool { return isPending(name) || lastgood.Is(name) })
	})
	if err != nil {
		return fmt.Errorf("clear what an earlier installation left on the ESP: %w", err)
	}
	h.Left.Pending, h.Left.Keys, h.Left.Unlocked = nil, false, false
	return nil
}

// clearRoot refuses where a verity tree has its name: that machine had a root partition.
func clearRoot(h *host.Host, t *gpt.Table) error {
	if h.State.TreeNamed {
		return fmt.Errorf("partition table of %s: this machine was in use, and its root partition is missing: write back the table of before", h.Disk.Name)
	}
	root, err := layout.Find(t, layout.Root)
	if err != nil {
		return fmt.Errorf("the plan for %s: %w", h.Disk.Name, err)
	}
	at, _ := t.Bytes(root)
	f, err := h.Disks.Open(h.Disk, true)
	if err != nil {
		return err
	}
	if err := errors.Join(block.Zero(f, at, rootlock.HeaderArea), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("clear the start of the root partition: %w", err)
	}
	return nil
}

// MakeTree generates the verity tree of slot A and gives the slot its name.
//
// The order: the tree is written and flushed, and only then the partition
// table names it. Cut before that, the slot has no name and the tree is
// generated again; there is no state in which a name stands over an unfinished
// tree.
func MakeTree(ctx context.Context, h *host.Host) error {
	const s = layout.SlotA
	data, err := h.Disks.OpenPartition(h.Disk, s.System(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := h.Disks.OpenPartition(h.Disk, s.Verity(), true)
	if err != nil {
		return err
	}
	defer tree.Close()
	want := h.Contract.Root()
	got, err := verity.Generate(ctx, data, h.Contract.VerityParams(), tree, h.Log.Progress("verity tree", h.Contract.ImageSize))
	if err != nil {
		return fmt.Errorf("verity tree of %s: %w", s.SystemLabel(), err)
	}
	if got != want {
		return fmt.Errorf("partition %s does not hold the system image of %s %s: its root hash is %s, the UKI names %s: install the image again",
			s.SystemLabel(), h.Contract.ImageID, h.Contract.Version, got, want)
	}
	if err := tree.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", s.VerityLabel(), err)
	}
	if err := errors.Join(data.Close(), tree.Close()); err != nil {
		return err
	}
	return h.WriteTable(layout.Rename(h.Table, s, layout.SystemUUID(want), layout.VerityUUID(want)))
}
