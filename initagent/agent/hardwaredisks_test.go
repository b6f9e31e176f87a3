package agent

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
	"halogenos.internal/initagent/hw"
)

// recordedDisk counts and remembers what is written.
type recordedDisk struct {
	m       *machine
	base    *blocktest.Disk // what is safe from a cut, as of the last flush
	pending []blocktest.Op
	now     *blocktest.Disk
}

func (d *recordedDisk) ReadAt(p []byte, off int64) (int, error) {
	if bad := d.m.bad; d.m.booting && off < bad.to && off+int64(len(p)) > bad.from {
		return 0, syscall.EIO
	}
	return d.now.ReadAt(p, off)
}

func (d *recordedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.m.op(fmt.Sprintf("disk write of %d at %d", len(p), off))
	if worn := d.m.worn; off < worn.to && off+int64(len(p)) > worn.from {
		return 0, syscall.EIO
	}
	n, err := d.now.WriteAt(p, off)
	if err == nil {
		d.pending = append(d.pending, blocktest.Op{Off: off, Data: slices.Clone(p)})
	}
	return n, err
}

func (d *recordedDisk) Sync() error {
	d.m.op("disk flush")
	if len(d.pending) > 0 && !d.m.lyingDisk {
		d.base, d.pending = d.now, nil
		d.now = d.base.Overlay()
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
				data = data[:len(data)/2/sectorSize*sectorSize]
			}
		}
		if _, err := out.WriteAt(data, w.Off); err != nil {
			d.m.t.Fatal(err)
		}
	}
	return out
}

// disks implements hw.Disks.
type disks struct{ m *machine }

func (d disks) List() ([]hw.Disk, error) {
	list := []hw.Disk{{Name: "disk0", SectorSize: sectorSize, Sectors: uint64(d.m.disk.now.Size() / sectorSize), PCI: d.m.pci[0]}}
	if d.m.second != nil {
		list = append(list, hw.Disk{Name: "disk1", SectorSize: sectorSize, Sectors: uint64(d.m.second.Size() / sectorSize), PCI: d.m.pci[1]})
	}
	return slices.DeleteFunc(list, func(found hw.Disk) bool { return len(d.m.driven) > 0 && !slices.Equal(found.PCI, d.m.driven) }), nil
}

type openFile struct{ block.Device }

func (openFile) Close() error { return nil }

type readOnly struct{ block.Device }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (readOnly) Close() error                       { return nil }

func opened(d block.Device, write bool) hw.File {
	if write {
		return openFile{d}
	}
	return readOnly{d}
}

func (d disks) Open(disk hw.Disk, write bool) (hw.File, error) {
	if disk.Name == "disk1" {
		return opened(d.m.second, false), nil
	}
	return opened(d.m.disk, write), nil
}

// broken is a partition that cannot be read.
type broken struct{ block.Device }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }
func (broken) Close() error                      { return nil }

func (d disks) OpenPartition(_ hw.Disk, number int, write bool) (hw.File, error) {
	s, err := d.m.partition(number)
	if err == nil && number == d.m.unreadable {
		return broken{s}, nil
	}
	if err != nil {
		return nil, err
	}
	return opened(s, write), nil
}

func (m *machine) table() (*gpt.Table, gpt.Health, error) {
	return gpt.Read(m.disk, uint64(m.disk.now.Size()/sectorSize), sectorSize)
}

func (m *machine) partition(number int) (*block.Section, error) {
	t, _, err := m.table()
	if err != nil {
		return nil, err
	}
	p, ok := t.ByNumber(number)
	if !ok {
		return nil, fmt.Errorf("partition %d: %w", number, fs.ErrNotExist)
	}
	at, size := t.Bytes(p)
	return block.NewSection(m.disk, at, size)
}

func (d disks) PartitionPath(_ hw.Disk, number int) (string, error) {
	return fmt.Sprintf("/dev/disk0p%d", number), nil
}

// Reread refuses as the kernel does, which lets go of no partition that is in use.
func (d disks) Reread(hw.Disk) error {
	if d.m.openVolume != nil {
		return unix.EBUSY
	}
	return nil
}
