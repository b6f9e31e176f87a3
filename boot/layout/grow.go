package layout

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/gpt"
)

// ErrLargeEnough says that there is nothing to grow: the slots have the size already.
var ErrLargeEnough = errors.New("the slots of this machine are as large as that already")

// A RoomError says that a disk lacks the room for larger slots.
type RoomError struct {
	Missing int64 // bytes that the root partition has too little
	text    string
}

// Error implements error.
func (e *RoomError) Error() string { return e.text }

// Extents returns the one or two partitions in order whose bytes, one behind the other, are
// the slot's partition with that role; of any other role, the one partition that Find returns.
// The errors are those of Find: a second extent without the first is ErrMissing, and two of
// the same marks are ErrAmbiguous.
func Extents(t *gpt.Table, r Role) ([]gpt.Partition, error) {
	first, err := Find(t, r)
	if err != nil {
		return nil, err
	}
	if r.More() == 0 {
		return []gpt.Partition{first}, nil
	}
	second, err := Find(t, r.More())
	switch {
	case errors.Is(err, ErrMissing):
		return []gpt.Partition{first}, nil
	case err != nil:
		return nil, err
	}
	return []gpt.Partition{first, second}, nil
}

// Opened is what of a role's extents is read and written: all, or the first alone where several
// partitions look like the second. What fits the first then works whatever somebody puts
// beside it, and what does not is refused (CheckRoom).
func Opened(t *gpt.Table, r Role) ([]gpt.Partition, error) {
	extents, err := Extents(t, r)
	if err == nil {
		return extents, nil
	}
	first, ferr := Find(t, r)
	if ferr != nil {
		return nil, err
	}
	return []gpt.Partition{first}, nil
}

// Content is what a role's extents on a disk hold, one behind the other (Opened).
func Content(d block.Device, t *gpt.Table, r Role) (*block.Joined, error) {
	extents, err := Opened(t, r)
	if err != nil {
		return nil, err
	}
	var parts []*block.Section
	for _, p := range extents {
		off, size := t.Bytes(p)
		s, err := block.NewSection(d, off, size)
		if err != nil {
			return nil, fmt.Errorf("partition %d (%s): %w", p.Number, p.Label, err)
		}
		parts = append(parts, s)
	}
	return block.Join(parts...), nil
}

// CheckRoom returns an error unless a slot's partitions have room for a system image and a
// verity tree of so many bytes. It names the second extent where there is none: a slot whose
// system lies in both had one.
func CheckRoom(t *gpt.Table, s Slot, image, tree int64) error {
	for _, w := range []want{{s.System(), image}, {s.Verity(), tree}} {
		first, err := Find(t, w.role)
		if err != nil {
			return err
		}
		_, have := t.Bytes(first)
		if have >= w.size {
			continue
		}
		size, err := Size(t, w.role)
		switch {
		case err != nil:
			return fmt.Errorf("the partition %s has %d bytes, the release needs %d: %w", w.role, have, w.size, err)
		case size == have:
			return fmt.Errorf("the partition %s has %d bytes, the release needs %d, and the disk has no partition %s that adds to it", w.role, size, w.size, w.role.More())
		case size < w.size:
			return fmt.Errorf("the partitions %s and %s have %d bytes together, the release needs %d", w.role, w.role.More(), size, w.size)
		}
	}
	return nil
}

// Size is the bytes of a role's extents together. The errors are those of Extents.
func Size(t *gpt.Table, r Role) (size int64, err error) {
	extents, err := Extents(t, r)
	for _, p := range extents {
		_, n := t.Bytes(p)
		size += n
	}
	return size, err
}

// Growth is a partition table with larger slots, as it shall become.
type Growth struct {
	Table *gpt.Table
	// RootSize is the bytes of the root partition in it.
	RootSize int64
	// Shrink is the bytes that the root partition loses: what is in it must be made so much
	// smaller before the table is written. It is 0 where free space is enough.
	Shrink int64
	// Changes says what differs from the table that is there, for people.
	Changes []string
}

// Grow returns the table in which both slots have slotSize bytes (a whole number of Align) and
// verity partitions for that: each partition that is smaller gets a second extent. These go
// where this system may use free space, if all fit there, and otherwise behind the root
// partition, which ends where the first of them begins. UUIDs are from random and name no content.
//
// An error wraps ErrLargeEnough where there is nothing to do; it is a RoomError where the root
// partition would keep less than MinRoot, and wraps ErrForeign where the table is not a
// complete one, or has second extents already that are too small: there is no third.
func Grow(t *gpt.Table, slotSize int64, random io.Reader) (*Growth, error) {
	if slotSize <= 0 || slotSize > MaxSlot || slotSize%Align != 0 {
		return nil, fmt.Errorf("slots of %d bytes: not a multiple of %d up to %d", slotSize, Align, int64(MaxSlot))
	}
	wants, err := missing(t, slotSize)
	if err != nil {
		return nil, err
	}
	root, err := Find(t, Root)
	if err != nil {
		return nil, fmt.Errorf("slots of %d MiB: %w", slotSize>>20, err)
	}
	plan := &Plan{Table: clone(t)}
	_, size := t.Bytes(root)
	g := &Growth{Table: plan.Table, RootSize: size}
	if !plan.fits(wants) {
		if err := g.shrink(root, wants); err != nil {
			return nil, err
		}
	}
	if g.Shrink > 0 {
		plan.Changes = append(plan.Changes, fmt.Sprintf("shrink partition %d (%s) from %d to %d MiB", root.Number, Root, size>>20, g.RootSize>>20))
	}
	for _, w := range wants {
		if err := plan.add(w, random); err != nil {
			return nil, err
		}
	}
	if err := plan.Table.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	g.Changes = plan.Changes
	return g, nil
}

// missing are the second extents that make the slots that large.
func missing(t *gpt.Table, slotSize int64) (wants []want, err error) {
	all, err := wanted(slotSize)
	if err != nil {
		return nil, err
	}
	for _, w := range all {
		if w.role.More() == 0 {
			continue
		}
		extents, err := Extents(t, w.role)
		if err != nil {
			return nil, fmt.Errorf("slots of %d MiB: %w", slotSize>>20, err)
		}
		size, _ := Size(t, w.role) // Extents has found them
		switch {
		case size >= w.size:
		case len(extents) > 1:
			return nil, fmt.Errorf("%w: partitions %d and %d (%s) have %d MiB together and %d MiB are needed: slots grow once; only a new installation makes them larger",
				ErrForeign, extents[0].Number, extents[1].Number, w.role, size>>20, w.size>>20)
		default:
			wants = append(wants, want{w.role.More(), AlignUp(w.size - size)})
		}
	}
	if len(wants) == 0 {
		return nil, fmt.Errorf("slots of %d MiB: %w", slotSize>>20, ErrLargeEnough)
	}
	return wants, nil
}

// fits reports whether free space that this system may use has room for all of them.
func (p *Plan) fits(wants []want) bool {
	trial := &Plan{Table: clone(p.Table)}
	for _, w := range wants {
		first, last, err := trial.place(w)
		if err != nil {
			return false
		}
		Insert(trial.Table, w.role, gpt.GUID{}, first, last)
	}
	return true
}

// shrink ends the root partition so that the extents have room behind it, in its own
// last sectors and what free space follows.
func (g *Growth) shrink(root gpt.Partition, wants []want) error {
	sector := uint64(g.Table.SectorSize)
	align := uint64(Align) / sector
	end := root.Last + 1 // exclusive
	for _, e := range g.Table.Free() {
		if e.First == end {
			end = e.Last + 1
			break
		}
	}
	var need uint64
	for _, w := range wants {
		need += uint64(w.size) / sector
	}
	// Aligned down, the end gives up less than Align to nobody.
	least := (root.First+uint64(MinRoot)/sector+align-1)/align*align + need
	if end = end / align * align; end < least {
		missing := int64((least - end) * sector)
		return &RoomError{missing, fmt.Sprintf("the slots need %d MiB more, and the root partition has %d MiB, of which it must keep %d: %d MiB are missing",
			int64(need*sector)>>20, g.RootSize>>20, MinRoot>>20, AlignUp(missing)>>20)}
	}
	p := &g.Table.Partitions[slices.Index(g.Table.Partitions, root)]
	p.Last = end - need - 1
	_, size := g.Table.Bytes(*p)
	g.Shrink, g.RootSize = g.RootSize-size, size
	return nil
}
