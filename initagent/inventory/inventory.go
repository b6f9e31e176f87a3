// Package inventory says what a machine has in its slots: the UKIs on the ESP,
// and which partitions hold what they name. It reads and changes nothing.
//
// It refuses to believe a file name: what a UKI is, its boot contract says.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// A System is one UKI on the ESP and what belongs to it.
type System struct {
	File  string      `json:"file"`
	State string      `json:"state"` // blessed, on trial with so many tries, or bad
	Slot  layout.Slot `json:"slot"`  // that holds its content; "none" where no slot does
	// Problem is what keeps it from starting, as far as can be seen.
	Problem  string             `json:"problem,omitempty"`
	Contract *contract.Contract `json:"-"`
	// Extensions are the release's, as the UKI lists them; Unlisted is why that cannot be
	// told, and nil where it is.
	Extensions []contract.Extension `json:"-"`
	Unlisted   error                `json:"-"`
	Version    string               `json:"version,omitempty"`
	Epoch      uint64               `json:"epoch"`
}

// A Room is what a slot has for a system image.
type Room struct {
	Slot       layout.Slot `json:"slot"`
	Size       int64       `json:"size"`              // bytes
	Partitions []string    `json:"partitions"`        // their labels: two where the slot has grown
	Problem    string      `json:"problem,omitempty"` // why it has none
}

// An Inventory is what the machine has.
type Inventory struct {
	Disk    string   `json:"disk"`
	Systems []System `json:"systems"` // the one that starts next comes first
	Slots   []Room   `json:"slots"`   // a and b

	machine hw.Machine
	disk    hw.Disk
	table   *gpt.Table
}

// Take looks at the machine. It needs Disks, Firmware and ESP.
func Take(m hw.Machine) (*Inventory, error) {
	d, err := bootdisk.Disk(m.Disks, m.Firmware)
	if err != nil {
		return nil, err
	}
	table, _, err := bootdisk.Table(m.Disks, d)
	if err != nil {
		return nil, fmt.Errorf("partition table of %s: %w", d.Name, err)
	}
	inv := &Inventory{Disk: d.Name, Slots: rooms(table), machine: m, disk: d, table: table}
	err = m.ESP.Read(d, func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Directory)
		if err != nil {
			return err
		}
		var names []bls.Name
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil {
				names = append(names, n)
			}
		}
		for len(names) > 0 {
			next, _ := bls.Choose(names)
			inv.Systems = append(inv.Systems, inv.look(files, next))
			rest := names[:0]
			for _, n := range names {
				if n != next {
					rest = append(rest, n)
				}
			}
			names = rest
		}
		return nil
	})
	return inv, err
}

func (inv *Inventory) look(files fs.FS, n bls.Name) System {
	s := System{File: n.String(), State: state(n)}
	initrd, err := read(files, path.Join(bls.Directory, n.String()))
	var c *contract.Contract
	if err == nil {
		c, err = contract.FromInitrd(initrd)
	}
	if err != nil {
		s.Problem, s.Unlisted = err.Error(), err
		return s
	}
	s.Extensions, s.Unlisted = contract.ExtensionsFromInitrd(initrd)
	s.Contract, s.Version, s.Epoch = c, c.Version.String(), c.Epoch
	named := false
	s.Slot, named = layout.FindSlot(inv.table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	switch {
	case c.ImageID != n.ImageID || c.Version != n.Version:
		s.Problem = fmt.Sprintf("it is %s %s inside", c.ImageID, c.Version)
	case !s.Slot.Valid():
		s.Problem = "no slot holds the content that it names"
	case !named:
		s.Problem = "its verity tree is not complete"
	case s.Unlisted != nil:
		s.Problem = s.Unlisted.Error()
	default:
		if err := inv.checkRoom(s.Slot, c); err != nil {
			s.Problem = err.Error()
		}
	}
	return s
}

func (inv *Inventory) checkRoom(s layout.Slot, c *contract.Contract) error {
	tree, err := verity.TreeSize(c.VerityParams().DataBlocks)
	if err != nil {
		return err
	}
	return layout.CheckRoom(inv.table, s, c.ImageSize, tree)
}

// rooms says what the slots have.
func rooms(t *gpt.Table) (all []Room) {
	for _, s := range layout.Slots {
		r := Room{Slot: s}
		extents, err := layout.Extents(t, s.System())
		if err != nil {
			r.Problem = err.Error()
		}
		for _, p := range extents {
			_, size := t.Bytes(p)
			r.Size += size
			r.Partitions = append(r.Partitions, p.Label)
		}
		all = append(all, r)
	}
	return all
}

func state(n bls.Name) string {
	switch {
	case n.Bad():
		return "bad"
	case n.Trial():
		return fmt.Sprintf("on trial, %d tries left", n.Left)
	}
	return "blessed"
}

// read returns the initramfs of a UKI, which begins with what the release says of itself.
func read(files fs.FS, name string) ([]byte, error) {
	image, err := bounded.File(files, name, enroll.MaxEFIFile)
	if err != nil {
		return nil, err
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	initrd, ok := parsed.Section(".initrd")
	if !ok {
		return nil, errors.New("it has no initramfs")
	}
	return initrd, nil
}

// ErrNoContent says that a slot has no content that a UKI names.
var ErrNoContent = errors.New("no UKI names the content of this slot")

// In returns the system whose content a slot holds.
func (inv *Inventory) In(s layout.Slot) (System, error) {
	for _, have := range inv.Systems {
		if have.Slot == s && have.Contract != nil {
			return have, nil
		}
	}
	return System{}, fmt.Errorf("slot %s: %w", s, ErrNoContent)
}

// Verify reads the whole slot of a system against its root hash. The error is a
// *verity.CorruptError where a block is corrupt.
func (inv *Inventory) Verify(ctx context.Context, s System, progress func(done int64)) error {
	if s.Contract == nil || !s.Slot.Valid() {
		return fmt.Errorf("%s: %w", s.File, ErrNoContent)
	}
	data, tree, err := inv.Open(s.Slot, false)
	if err != nil {
		return err
	}
	defer data.Close()
	defer tree.Close()
	return verity.Verify(ctx, data, tree, s.Contract.VerityParams(), s.Contract.Root(), progress)
}

// Open opens the two partitions of a slot.
func (inv *Inventory) Open(s layout.Slot, write bool) (data, tree hw.File, err error) {
	if data, err = inv.machine.Disks.OpenPartition(inv.disk, s.System(), write); err != nil {
		return nil, nil, err
	}
	if tree, err = inv.machine.Disks.OpenPartition(inv.disk, s.Verity(), write); err != nil {
		data.Close()
		return nil, nil, err
	}
	return data, tree, nil
}

// UUIDs are those of a slot's partitions, by which a UKI finds its system; an error where the
// table has no such slot.
func (inv *Inventory) UUIDs(s layout.Slot) (system, tree gpt.GUID, err error) {
	a, err := layout.Find(inv.table, s.System())
	b, terr := layout.Find(inv.table, s.Verity())
	if err := errors.Join(err, terr); err != nil {
		return system, tree, fmt.Errorf("slot %s of %s: %w", s, inv.Disk, err)
	}
	return a.UUID, b.UUID, nil
}

// SystemSize is the bytes that a slot has for a system image, in both its extents; 0 where
// the table has none.
func (inv *Inventory) SystemSize(s layout.Slot) int64 {
	size, err := layout.Size(inv.table, s.System())
	if err != nil {
		return 0
	}
	return size
}
