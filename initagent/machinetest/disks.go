package machinetest

import (
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/hw"
)

// recordedDisk counts and remembers what is written.
type recordedDisk struct {
	m       *Machine
	base    *blocktest.Disk // what is safe from a cut, as of the last flush
	pending []blocktest.Op
	Now     *blocktest.Disk
}

func (d *recordedDisk) ReadAt(p []byte, off int64) (int, error) {
	if bad := d.m.Bad; d.m.booting && off < bad.To && off+int64(len(p)) > bad.From {
		return 0, syscall.EIO
	}
	return d.Now.ReadAt(p, off)
}

func (d *recordedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.m.op(fmt.Sprintf("disk write of %d at %d", len(p), off))
	d.m.checkOrder(off)
	if worn := d.m.Worn; off < worn.To && off+int64(len(p)) > worn.From {
		return 0, syscall.EIO
	}
	n, err := d.Now.WriteAt(p, off)
	if err == nil {
		d.pending = append(d.pending, blocktest.Op{Off: off, Data: slices.Clone(p)})
	}
	return n, err
}

func (d *recordedDisk) Sync() error {
	d.m.op("disk flush")
	if len(d.pending) > 0 && !d.m.LyingDisk {
		d.base, d.pending = d.Now, nil
		d.Now = d.base.Overlay()
		d.m.durable++
	}
	return nil
}

// after returns what a cut leaves. Torn writes end between two sectors.
func (d *recordedDisk) after(all bool, r *mrand.Rand) *blocktest.Disk {
	out := d.base.Overlay()
	for _, w := range d.pending {
		data := w.Data
		if !all {
			if r == nil || r.IntN(2) == 0 {
				continue
			}
			if r.IntN(3) == 0 {
				data = data[:len(data)/2/SectorSize*SectorSize]
			}
		}
		if _, err := out.WriteAt(data, w.Off); err != nil {
			d.m.T.Fatal(err)
		}
	}
	return out
}

// Disks implements hw.Disks.
type Disks struct{ M *Machine }

func (d Disks) List() ([]hw.Disk, error) {
	list := []hw.Disk{{Name: "disk0", SectorSize: SectorSize, Sectors: uint64(d.M.Disk.Now.Size() / SectorSize), PCI: d.M.PCI[0]}}
	if d.M.Second != nil {
		list = append(list, hw.Disk{Name: "disk1", SectorSize: SectorSize, Sectors: uint64(d.M.Second.Size() / SectorSize), PCI: d.M.PCI[1]})
	}
	return slices.DeleteFunc(list, func(found hw.Disk) bool { return len(d.M.Driven) > 0 && !slices.Equal(found.PCI, d.M.Driven) }), nil
}

type openFile struct{ block.Device }

func (openFile) Close() error { return nil }

type readOnly struct{ block.Device }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }

func (readOnly) Close() error { return nil }

func opened(d block.Device, write bool) hw.File {
	if write {
		return openFile{d}
	}
	return readOnly{d}
}

func (d Disks) Open(disk hw.Disk, write bool) (hw.File, error) {
	if disk.Name == "disk1" {
		return opened(d.M.Second, false), nil
	}
	return opened(d.M.Disk, write), nil
}

// broken is a partition that cannot be read.
type broken struct{ block.Device }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

func (broken) Close() error { return nil }

func (d Disks) OpenPartition(_ hw.Disk, r layout.Role, write bool) (hw.File, error) {
	s, err := d.M.Partition(r)
	if err == nil && r == d.M.Unreadable {
		return broken{s}, nil
	}
	if err != nil {
		return nil, err
	}
	return opened(s, write), nil
}

func (m *Machine) Table() (*gpt.Table, gpt.Health, error) {
	return gpt.Read(m.Disk, uint64(m.Disk.Now.Size()/SectorSize), SectorSize)
}

// Partition is one of the disk's, by its role; a slot's with both its extents.
func (m *Machine) Partition(r layout.Role) (*block.Joined, error) {
	t, _, err := m.Table()
	if err != nil {
		return nil, err
	}
	return layout.Content(m.Disk, t, r)
}

func (d Disks) PartitionPath(_ hw.Disk, r layout.Role) (string, error) {
	return "/dev/disk0-" + r.String(), nil
}

// Reread refuses as the kernel does, which lets go of no partition that is in use.
func (d Disks) Reread(hw.Disk) error {
	if d.M.OpenVolume != nil {
		return unix.EBUSY
	}
	return nil
}
