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
	number int
	label  string
	kind   gpt.GUID
	size   int64 // bytes; 0 is the rest of the disk
}

func wanted(slotSize int64) ([]want, error) {
	tree, err := VeritySize(slotSize)
	if err != nil {
		return nil, err
	}
	return []want{
		{ESPNumber, ESPLabel, TypeESP, ESPSize},
		{SlotA.SystemNumber(), SlotA.SystemLabel(), TypeRoot, slotSize},
		{SlotA.VerityNumber(), SlotA.VerityLabel(), TypeRootVerity, tree},
		{SlotB.SystemNumber(), SlotB.SystemLabel(), TypeRoot, slotSize},
		{SlotB.VerityNumber(), SlotB.VerityLabel(), TypeRootVerity, tree},
		{RootNumber, RootLabel, TypeLUKS, 0},
	}, nil
}

// Complete reports whether the table has all six partitions in their places,
// large enough for the slot size.
func Complete(t *gpt.Table, slotSize int64) bool {
	plan, err := NewPlan(t, slotSize, zeroReader{})
	return err == nil && len(plan.Changes) == 0
}

// zeroReader is the randomness of a plan that is only looked at.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// NewPlan returns the table that makes a disk complete: the first system
// partition grown to slotSize bytes where free space follows, and partitions 3
// to 6 made, with UUIDs from random, which name no content. It is given what an
// installation leaves (the ESP and the first system partition) or anything
// between that and a complete table; an error wraps ErrForeign when the disk
// has something else on it, or too little room.
func NewPlan(t *gpt.Table, slotSize int64, random io.Reader) (*Plan, error) {
	wants, err := wanted(slotSize)
	if err != nil {
		return nil, err
	}
	if err := onlyOurs(t, wants); err != nil {
		return nil, err
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

// onlyOurs refuses a table with a partition that the layout does not have, or
// has elsewhere.
func onlyOurs(t *gpt.Table, wants []want) error {
	for _, have := range t.Partitions {
		i := slices.IndexFunc(wants, func(w want) bool { return w.number == have.Number })
		if i < 0 {
			return fmt.Errorf("%w: partition %d (%q) should not be there", ErrForeign, have.Number, have.Label)
		}
		w := wants[i]
		if have.Type != w.kind {
			return fmt.Errorf("%w: partition %d (%q) has type %s, want %s (%s)", ErrForeign, have.Number, have.Label, have.Type, w.kind, w.label)
		}
		if have.Label != w.label {
			return fmt.Errorf("%w: partition %d is labelled %q, want %q", ErrForeign, have.Number, have.Label, w.label)
		}
	}
	for _, number := range []int{ESPNumber, SlotA.SystemNumber()} {
		if _, ok := t.ByNumber(number); !ok {
			return fmt.Errorf("%w: partition %d is missing, which an installation makes", ErrForeign, number)
		}
	}
	return nil
}

// provide makes or grows one partition.
func (p *Plan) provide(w want, random io.Reader) error {
	have, ok := p.Table.ByNumber(w.number)
	switch {
	case !ok:
		return p.add(w, random)
	case w.number == ESPNumber || w.size == 0:
		return nil // its size is the installation's choice
	}
	if _, size := p.Table.Bytes(have); size >= w.size {
		return nil
	}
	return p.grow(have, w)
}

func (p *Plan) grow(have gpt.Partition, w want) error {
	_, size := p.Table.Bytes(have)
	last := have.First + uint64(w.size)/uint64(p.Table.SectorSize) - 1
	fits := slices.ContainsFunc(p.Table.Free(), func(e gpt.Extent) bool {
		return e.First == have.Last+1 && e.Last >= last
	})
	if !fits {
		return fmt.Errorf("%w: partition %d (%s) has %d MiB, the slot size is %d MiB, and there is no free space behind it",
			ErrForeign, w.number, w.label, size>>20, w.size>>20)
	}
	for i := range p.Table.Partitions {
		if p.Table.Partitions[i].Number == w.number {
			p.Table.Partitions[i].Last = last
		}
	}
	p.Changes = append(p.Changes, fmt.Sprintf("grow partition %d (%s) from %d to %d MiB", w.number, w.label, size>>20, w.size>>20))
	return nil
}

// add makes the partition in the first free run of sectors behind the ESP that
// has room; the root partition takes the largest one.
func (p *Plan) add(w want, random io.Reader) error {
	first, last, err := p.place(w)
	if err != nil {
		return err
	}
	uuid, err := gpt.RandomGUID(random)
	if err != nil {
		return fmt.Errorf("random UUID for partition %d: %w", w.number, err)
	}
	made := gpt.Partition{Number: w.number, Type: w.kind, UUID: uuid, First: first, Last: last, Label: w.label}
	at, _ := slices.BinarySearchFunc(p.Table.Partitions, w.number, func(q gpt.Partition, n int) int { return q.Number - n })
	p.Table.Partitions = slices.Insert(p.Table.Partitions, at, made)
	_, size := p.Table.Bytes(made)
	p.Changes = append(p.Changes, fmt.Sprintf("make partition %d (%s), %d MiB", w.number, w.label, size>>20))
	return nil
}

func (p *Plan) place(w want) (first, last uint64, err error) {
	sector := uint64(p.Table.SectorSize)
	align := uint64(Align) / sector
	need := uint64(max(w.size, MinRoot)) / sector
	if w.size > 0 {
		need = uint64(w.size) / sector
	}
	var best, largest uint64
	for _, e := range p.Table.Free() {
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
		return 0, 0, fmt.Errorf("%w: partition %d (%s) needs %d MiB, the largest free space has %d MiB",
			ErrForeign, w.number, w.label, need*sector>>20, largest*sector>>20)
	}
	return first, last, nil
}

// FindSlot returns the slot whose system partition the table names with this UUID,
// and whether its verity partition carries the other.
func FindSlot(t *gpt.Table, system, tree gpt.GUID) (s Slot, treeNamed bool) {
	for _, slot := range Slots {
		if have, ok := t.ByNumber(slot.SystemNumber()); ok && have.UUID == system {
			v, ok := t.ByNumber(slot.VerityNumber())
			named := ok && v.UUID == tree
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
// the given UUIDs.
func Rename(t *gpt.Table, s Slot, system, tree gpt.GUID) *gpt.Table {
	out := clone(t)
	for i := range out.Partitions {
		switch out.Partitions[i].Number {
		case s.SystemNumber():
			out.Partitions[i].UUID = system
		case s.VerityNumber():
			out.Partitions[i].UUID = tree
		}
	}
	return out
}

func clone(t *gpt.Table) *gpt.Table {
	c := *t
	c.Partitions = slices.Clone(t.Partitions)
	return &c
}
