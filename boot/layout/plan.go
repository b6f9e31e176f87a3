package layout

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/gpt"
)

// ErrForeign is wrapped by errors about a disk that is not laid out as an
// installation leaves it. Nothing may be written to such a disk.
var ErrForeign = errors.New("this disk is not laid out for this system")

// A Plan is a partition table as it shall become.
type Plan struct {
	Table *gpt.Table
	// Changes says what differs from the table that is there, for people.
	Changes []string
}

// want is one partition of the layout.
type want struct {
	role Role
	size int64 // bytes; 0 is the rest of the free space
}

func wanted(slotSize int64) ([]want, error) {
	tree, err := VeritySize(slotSize)
	if err != nil {
		return nil, err
	}
	return []want{{SystemA, slotSize}, {VerityA, tree}, {SystemB, slotSize}, {VerityB, tree}, {Root, 0}}, nil
}

// NewPlan returns the table that makes a disk complete: the first system
// partition grown to slotSize bytes where free space follows, and the others
// made, with UUIDs from random, which name no content. It is given what an
// installation leaves (the ESP and the first system partition) or anything
// between that and a complete table. Partitions of other systems stay as they are;
// beside them only free space that follows a partition of ours is used. A partition of a
// slot counts with its second extent, if it has one (Extents). An error wraps
// ErrForeign when it is not clear which partitions are ours, or when there is too little room.
func NewPlan(t *gpt.Table, slotSize int64, random io.Reader) (*Plan, error) {
	wants, err := wanted(slotSize)
	if err != nil {
		return nil, err
	}
	// Which of several is the ESP does not matter here: nothing is done to it.
	if !slices.ContainsFunc(t.Partitions, ESP.is) {
		return nil, fmt.Errorf("%w: no partition has the label %q and the type %s, and an installation makes one", ErrForeign, ESP, ESP.Type())
	}
	if _, err := Find(t, SystemA); err != nil {
		return nil, fmt.Errorf("%w: %w; an installation makes one", ErrForeign, err)
	}
	p := &Plan{Table: clone(t)}
	for _, w := range wants {
		if err := p.provide(w, random); err != nil {
			return nil, err
		}
	}
	if err := p.Table.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return p, nil
}

// provide makes or grows one partition.
func (p *Plan) provide(w want, random io.Reader) error {
	have, err := Find(p.Table, w.role)
	switch {
	case errors.Is(err, ErrMissing):
		// An installation that keeps the root partition has kept what lies behind that, too.
		if second, err := Find(p.Table, w.role.More()); err == nil {
			_, size := p.Table.Bytes(second)
			w.size = max(AlignUp(w.size-size), Align)
		}
		return p.add(w, random)
	case err != nil:
		return err
	case w.size == 0:
		return nil // it has what there was
	}
	// A first extent that suffices is enough, whatever a table that somebody has changed
	// says of a second one.
	_, size := p.Table.Bytes(have)
	if size >= w.size {
		return nil
	}
	joined, err := Size(p.Table, w.role)
	if err != nil {
		return err
	}
	if joined >= w.size {
		return nil
	}
	return p.grow(have, w, joined-size)
}

// grow makes a first extent so large that it has the size with the second one's.
func (p *Plan) grow(have gpt.Partition, w want, second int64) error {
	_, size := p.Table.Bytes(have)
	last := have.First + uint64(w.size-second)/uint64(p.Table.SectorSize) - 1
	fits := slices.ContainsFunc(p.Table.Free(), func(e gpt.Extent) bool {
		return e.First == have.Last+1 && e.Last >= last
	})
	switch {
	case !fits && second > 0:
		return fmt.Errorf("%w: the partitions %s and %s have %d MiB together, the slot size is %d MiB, and there is no free space behind the first",
			ErrForeign, w.role, w.role.More(), (size+second)>>20, w.size>>20)
	case !fits:
		return fmt.Errorf("%w: partition %d (%s) has %d MiB, the slot size is %d MiB, there is no free space behind it, and no partition %s adds to it",
			ErrForeign, have.Number, w.role, size>>20, w.size>>20, w.role.More())
	}
	for i := range p.Table.Partitions {
		if p.Table.Partitions[i].Number == have.Number {
			p.Table.Partitions[i].Last = last
		}
	}
	p.Changes = append(p.Changes, fmt.Sprintf("grow partition %d (%s) from %d to %d MiB", have.Number, w.role, size>>20, (w.size-second)>>20))
	return nil
}

// add makes the partition in the first free run of sectors that has room; the
// root partition takes the largest one.
func (p *Plan) add(w want, random io.Reader) error {
	first, last, err := p.place(w)
	if err != nil {
		return err
	}
	uuid, err := gpt.RandomGUID(random)
	if err != nil {
		return fmt.Errorf("random UUID for the partition %s: %w", w.role, err)
	}
	made := Insert(p.Table, w.role, uuid, first, last)
	_, size := p.Table.Bytes(made)
	p.Changes = append(p.Changes, fmt.Sprintf("make partition %d (%s), %d MiB", made.Number, w.role, size>>20))
	return nil
}

// free is the free space that partitions may be made in: all of it on a disk that
// this system has for itself. Elsewhere it is what follows a partition of ours: other
// free space is somebody's whom nobody has asked. An ESP does not count there: another
// system's may have our label, and behind our own there is the first system partition.
func (p *Plan) free() []gpt.Extent {
	if _, err := Find(p.Table, ESP); err == nil && !slices.ContainsFunc(p.Table.Partitions, func(q gpt.Partition) bool { return RoleOf(q) == 0 || RoleOf(q) == Installer }) {
		return p.Table.Free()
	}
	return slices.DeleteFunc(p.Table.Free(), func(e gpt.Extent) bool {
		follows := func(q gpt.Partition) bool { return q.Last+1 == e.First && RoleOf(q) > ESP && RoleOf(q) != Installer }
		return !slices.ContainsFunc(p.Table.Partitions, follows)
	})
}

func (p *Plan) place(w want) (first, last uint64, err error) {
	sector := uint64(p.Table.SectorSize)
	align := uint64(Align) / sector
	need := uint64(max(w.size, MinRoot)) / sector
	if w.size > 0 {
		need = uint64(w.size) / sector
	}
	var best, largest uint64
	for _, e := range p.free() {
		start := (e.First + align - 1) / align * align
		end := (e.Last + 1) / align * align // exclusive
		if end <= start {
			continue
		}
		room := end - start
		largest = max(largest, room)
		if room < need || best >= room {
			continue
		}
		if w.size > 0 {
			return start, start + need - 1, nil
		}
		first, last, best = start, end-1, room
	}
	if best == 0 {
		return 0, 0, fmt.Errorf("%w: the partition %s needs %d MiB, and the largest free space that it may have has %d MiB",
			ErrForeign, w.role, need*sector>>20, largest*sector>>20)
	}
	return first, last, nil
}

// FindSlot returns the slot whose system partition the table names with this UUID,
// and whether its verity partition carries the other.
func FindSlot(t *gpt.Table, system, tree gpt.GUID) (s Slot, treeNamed bool) {
	for _, slot := range Slots {
		if have, err := Find(t, slot.System()); err == nil && have.UUID == system {
			v, err := Find(t, slot.Verity())
			named := err == nil && v.UUID == tree
			// Two slots may hold the same release; the one whose tree is
			// complete is the one to boot.
			if !s.Valid() || named && !treeNamed {
				s, treeNamed = slot, named
			}
		}
	}
	return s, treeNamed
}

// Rename returns a copy of the table in which the slot's two partitions carry
// the given UUIDs: the first extents, which alone name the content. A partition that Find
// does not find stays as it is.
func Rename(t *gpt.Table, s Slot, system, tree gpt.GUID) *gpt.Table {
	out := clone(t)
	for role, uuid := range map[Role]gpt.GUID{s.System(): system, s.Verity(): tree} {
		have, err := Find(t, role)
		if i := slices.Index(out.Partitions, have); err == nil && i >= 0 {
			out.Partitions[i].UUID = uuid
		}
	}
	return out
}

func clone(t *gpt.Table) *gpt.Table {
	c := *t
	c.Partitions = slices.Clone(t.Partitions)
	return &c
}
