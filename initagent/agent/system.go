package agent

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/vault"
)

// writeTable puts a table on the disk and makes the kernel use it.
func (a *Agent) writeTable(t *gpt.Table) error {
	if err := a.PutTable(t); err != nil {
		return err
	}
	return a.Disks.Reread(a.Disk)
}

// partition makes the partitions that an installation leaves out. All come in
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
func (a *Agent) partition() error {
	plan, err := layout.NewPlan(a.Table, a.Contract.SlotSize, a.Random)
	if err != nil {
		return err
	}
	for _, change := range plan.Changes {
		a.Log.Say("%s: %s", a.Disk.Name, change)
	}
	if _, there := a.Table.ByNumber(layout.RootNumber); !there {
		if err := errors.Join(a.clearDirectory(), a.clearRoot(plan.Table)); err != nil {
			return err
		}
		own, changed, err := layout.OwnIDs(plan.Table, a.Contract.ImageID, a.Contract.Version.String(), a.Random)
		if err != nil {
			return err
		}
		if changed {
			a.Log.Say("%s: the disk gets UUIDs of its own, and was %v", a.Disk.Name, plan.Table.Disk)
		}
		plan.Table = own
	}
	return a.writeTable(plan.Table)
}

func (a *Agent) clearDirectory() error {
	if !a.leftovers && !a.unlocked {
		return nil
	}
	err := a.WriteESP(func(dir hw.ESPDir) error {
		return removeFiles(dir, func(name string) bool { return isPending(name) || lastgood.Is(name) })
	})
	if err != nil {
		return fmt.Errorf("clear what an earlier installation left on the ESP: %w", err)
	}
	a.pending, a.leftovers, a.unlocked = nil, false, false
	return nil
}

func (a *Agent) clearRoot(t *gpt.Table) error {
	root, ok := t.ByNumber(layout.RootNumber)
	if !ok {
		return fmt.Errorf("the plan for %s has no root partition", a.Disk.Name)
	}
	at, _ := t.Bytes(root)
	f, err := a.Disks.Open(a.Disk, true)
	if err != nil {
		return err
	}
	if err := errors.Join(block.Zero(f, at, vault.HeaderArea), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("clear the start of the root partition: %w", err)
	}
	return nil
}

// makeTree generates the verity tree of slot A and gives the slot its name.
//
// The order: the tree is written and flushed, and only then the partition
// table names it. Cut before that, the slot has no name and the tree is
// generated again; there is no state in which a name stands over an unfinished
// tree.
func (a *Agent) makeTree(ctx context.Context) error {
	const s = layout.SlotA
	data, err := a.Disks.OpenPartition(a.Disk, s.SystemNumber(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := a.Disks.OpenPartition(a.Disk, s.VerityNumber(), true)
	if err != nil {
		return err
	}
	defer tree.Close()
	want := a.Contract.Root()
	got, err := verity.Generate(ctx, data, a.Contract.VerityParams(), tree, a.Log.Progress("verity tree", a.Contract.ImageSize))
	if err != nil {
		return fmt.Errorf("verity tree of %s: %w", s.SystemLabel(), err)
	}
	if got != want {
		return fmt.Errorf("partition %s does not hold the system image of %s %s: its root hash is %s, the UKI names %s: install the image again",
			s.SystemLabel(), a.Contract.ImageID, a.Contract.Version, got, want)
	}
	if err := tree.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", s.VerityLabel(), err)
	}
	if err := errors.Join(data.Close(), tree.Close()); err != nil {
		return err
	}
	return a.writeTable(layout.Rename(a.Table, s, layout.SystemUUID(want), layout.VerityUUID(want)))
}

// openVerity opens and mounts the system image.
func (a *Agent) openVerity(ctx context.Context) error {
	s := a.State.Booted
	data, err := a.Disks.PartitionPath(a.Disk, s.SystemNumber())
	if err != nil {
		return err
	}
	hash, err := a.Disks.PartitionPath(a.Disk, s.VerityNumber())
	if err != nil {
		return err
	}
	if err := a.Kernel.Load("dm_verity", "erofs"); err != nil {
		return err
	}
	device, err := a.Mapper.OpenVerity(hw.Verity{
		Name: "system", DataDevice: data, HashDevice: hash,
		Params: a.Contract.VerityParams(), Root: a.Contract.Root(),
		RestartOnCorruption: a.State.Trial,
	})
	if err != nil {
		return errors.Join(err, a.diagnose(ctx))
	}
	if err := a.Mounts.Mount(device, a.Path(host.SystemDirectory), "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return errors.Join(err, a.diagnose(ctx))
	}
	return nil
}

// diagnose reads the whole slot against its root hash, to say what is corrupt
// where. The boot has failed already, so there is time.
func (a *Agent) diagnose(ctx context.Context) error {
	s := a.State.Booted
	data, err := a.Disks.OpenPartition(a.Disk, s.SystemNumber(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := a.Disks.OpenPartition(a.Disk, s.VerityNumber(), false)
	if err != nil {
		return err
	}
	defer tree.Close()
	err = verity.Verify(ctx, data, tree, a.Contract.VerityParams(), a.Contract.Root(), a.Log.Progress("looking for what is corrupt", a.Contract.ImageSize))
	if err == nil {
		return errors.New("every block of the slot is as its root hash says: the kernel or the disk is at fault")
	}
	return fmt.Errorf("slot %s: %w", s, err)
}
