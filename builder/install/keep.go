package install

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/boot/words"
)

// A Root is the root partition that an earlier installation has left on a disk.
type Root struct {
	Partition gpt.Partition `json:"-"`
	Volume    string        `json:"volume"` // UUID of the LUKS2 volume
	Size      int64         `json:"size"`   // bytes
	// More are the second extents of the slots that lie behind it, where they have grown.
	More []gpt.Partition `json:"-"`
}

// behind is the bytes of all that, and of what the first system partition has of it.
func (r *Root) behind(sectorSize int) (all, system int64) {
	for _, p := range r.More {
		size := int64(p.Sectors()) * int64(sectorSize)
		if all += size; layout.RoleOf(p) == layout.MoreSystemA {
			system = size
		}
	}
	return all, system
}

// ErrNoRoot is returned for a disk that no HalogenOS was installed on.
var ErrNoRoot = words.Errorf(words.InNoRoot)

// FindRoot looks for a root partition that can be kept: with the label and type of the
// layout, and a whole header that a recovery key opens.
func FindRoot(r io.ReaderAt, sectors uint64, sectorSize int) (*Root, error) {
	t, _, err := gpt.Read(r, sectors, sectorSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRoot, err)
	}
	return findRoot(r, t)
}

// findRoot does that in a table that was read.
func findRoot(r io.ReaderAt, t *gpt.Table) (*Root, error) {
	p, err := layout.Find(t, layout.Root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRoot, err)
	}
	at, size := t.Bytes(p)
	volume, err := rootheader.Check(io.NewSectionReader(r, at, size), size)
	if err != nil {
		return nil, words.Errorf(words.InBadRoot, p.Number, err)
	}
	found := &Root{Partition: p, Volume: volume, Size: size}
	for _, s := range layout.Slots {
		for _, r := range []layout.Role{s.System().More(), s.Verity().More()} {
			if more, err := layout.Find(t, r); err == nil && more.First > p.Last {
				found.More = append(found.More, more)
			}
		}
	}
	return found, nil
}

// alone refuses a disk with partitions of other systems: to keep the root partition is to
// take all others off the table, and to write over the start of the disk.
func alone(t *gpt.Table) error {
	seen := map[layout.Role]bool{}
	for _, p := range t.Partitions {
		role := layout.RoleOf(p)
		if role == 0 || role == layout.Installer || seen[role] {
			return words.Errorf(words.InKeepAlone, p.Number, p.Label)
		}
		seen[role] = true
	}
	return nil
}

// leave takes everything but the root partition off the partition table, and what the slots
// keep behind it.
//
// The table is never zeroed: with each write that replaces it one of its copies
// is good, and every one of them has the root partition at its place. Cut before
// it is done, the disk starts the old system, of which nothing else was touched, or
// none; cut after it, there is no ESP in the table, and no firmware starts it. It
// can be installed again, and the root partition kept again. Nothing is ever
// written between the root partition's first and last sector.
func leave(d Target, t *gpt.Table, kept gpt.Partition) error {
	// As the disk has it now: somebody may have made partitions since it was looked at.
	now, _, err := gpt.Read(d, t.Sectors, t.SectorSize)
	if err != nil {
		return fmt.Errorf("keep the root partition: %w: %w", ErrNoRoot, err)
	}
	have, err := findRoot(d, now)
	if err != nil {
		return fmt.Errorf("keep the root partition: %w", err)
	}
	if err := alone(now); err != nil {
		return fmt.Errorf("keep the root partition: %w", err)
	}
	stays := func(p gpt.Partition) bool { return p == kept || p.Type == layout.TypeMore }
	changed := func(p gpt.Partition) bool { return stays(p) && p != have.Partition && !slices.Contains(have.More, p) }
	if have.Partition != kept || slices.ContainsFunc(t.Partitions, changed) {
		return errors.New("keep the root partition: it has changed since it was looked at")
	}
	alone := *t
	alone.Partitions = slices.DeleteFunc(slices.Clone(t.Partitions), func(p gpt.Partition) bool { return !stays(p) })
	if err := writeTable(d, &alone); err != nil {
		return fmt.Errorf("keep the root partition alone: %w", err)
	}
	return nil
}
