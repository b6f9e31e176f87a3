package rootpart

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/hw"
)

// ErrRedo says that what waits for the root partition cannot be brought to its place.
var ErrRedo = errors.New("the root partition was being made smaller when this machine stopped, and that cannot be finished. Its data is whole only together with what waits on that partition: " +
	"if somebody has overwritten that, write back what it held, and start again")

// storeRole is the role of a partition that a store may lie on.
func storeRole(label string) (layout.Role, error) {
	for _, s := range layout.Slots {
		if s.System().Label() == label {
			return s.System(), nil
		}
	}
	return 0, fmt.Errorf("no store can be on a partition %q", label)
}

// withStore gives the store on a partition to a function, once it is on the disk.
func (v Volume) withStore(role layout.Role, do func(s *shrink.Store) error) error {
	segment, err := v.Lock.Header.Segment()
	if err != nil {
		return err
	}
	table, _, err := bootdisk.Table(v.Machine.Disks, v.Disk)
	if err != nil {
		return err
	}
	size, err := layout.Size(table, role)
	if err != nil {
		return err
	}
	f, err := v.Machine.Disks.OpenPartition(v.Disk, role, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // the kernel has written it
		return err
	}
	s, err := shrink.Open(f, size, shrink.Range{Start: segment.Offset, End: segment.Offset + segment.Length})
	if err != nil {
		return err
	}
	return do(s)
}

// setRedo changes the header of the root partition.
func (v Volume) setRedo(f hw.File, redo *luks2.Redo) error {
	return v.Lock.Header.Change(v.Random, f, func(c *luks2.Change) error { return c.SetRedo(redo) })
}

// withRoot does something with the root partition, for writing.
func (v Volume) withRoot(do func(f hw.File) error) error {
	f, err := v.Machine.Disks.OpenPartition(v.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// NoteRedo has the header say that what is in the store on a partition waits, and returns how
// many bytes that are.
func (v Volume) NoteRedo(role layout.Role) (size int64, err error) {
	err = v.withStore(role, func(s *shrink.Store) error {
		mac, err := s.MAC(v.Key)
		if err != nil {
			return err
		}
		size = int64(s.Chunks()) * shrink.ChunkSize
		return v.withRoot(func(f hw.File) error {
			return v.setRedo(f, &luks2.Redo{Partition: role.Label(), Chunks: s.Chunks(), MAC: mac})
		})
	})
	return size, err
}

// FinishRedo brings what a snapshot of the root partition has changed to its place, where the
// header says that it waits (luks2.Redo). Nothing opens the volume before that is done.
//
// The order: the snapshot is closed, and its store is on the disk; the store is read back and
// measured under the volume key; the header says that it waits (NoteRedo); the chunks are
// copied, and synced; the header no longer says so. Cut before the header is written, the root
// partition is as it was, and nobody asks for the store. Cut after it, at any write, the next
// who opens the volume copies all of it once more, which comes to the same.
//
// A cut in the writing of the header leaves one copy of it that says nothing. That is written
// first: were the other one damaged later, a root partition would be opened that is half done.
func (v Volume) FinishRedo() error {
	waits, err := v.Lock.Header.Redo()
	if waits == nil {
		return err
	}
	if v.Disk.ReadOnly {
		return fmt.Errorf("partition %q: %w: the disk cannot be written", waits.Partition, ErrRedo)
	}
	role, err := storeRole(waits.Partition)
	if err == nil {
		err = v.withRoot(func(f hw.File) error { return v.Lock.Header.Heal(v.Random, f) })
	}
	if err == nil {
		err = v.withStore(role, func(s *shrink.Store) error { return v.copyStore(s, waits) })
	}
	if err != nil {
		return fmt.Errorf("partition %q: %w: %w", waits.Partition, ErrRedo, err)
	}
	return v.withRoot(func(f hw.File) error { return v.setRedo(f, nil) })
}

func (v Volume) copyStore(s *shrink.Store, waits *luks2.Redo) error {
	if s.Chunks() != waits.Chunks {
		return fmt.Errorf("%w: %d chunks, want %d", shrink.ErrChanged, s.Chunks(), waits.Chunks)
	}
	if err := s.Check(v.Key, waits.MAC); err != nil {
		return err
	}
	size := int64(s.Chunks()) * shrink.ChunkSize
	v.Machine.Log.Say("redo: %d MiB wait on the partition %s for their place on the root partition", size>>20, waits.Partition)
	progress, done := v.Machine.Log.Progress("redo", size), int64(0)
	err := v.withRoot(func(f hw.File) error {
		return s.Redo(f, func(n int64) { done += n; progress(done) })
	})
	if err != nil {
		return err
	}
	v.Machine.Log.Say("redo: done")
	return nil
}
