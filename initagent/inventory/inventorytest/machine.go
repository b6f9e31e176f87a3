// Package inventorytest is a machine for tests: a disk in memory with slots in
// it, and an ESP. It is imported by tests only.
package inventorytest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"testing"
	"testing/fstest"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/layout/layouttest"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

const (
	size     = 4 << 30
	slotSize = 8 << 20
)

// A Machine has a provisioned disk with two empty slots, until Install.
type Machine struct {
	t    testing.TB
	disk *blocktest.Recorder
	Sys  hw.Disk
	// Files is the ESP.
	Files fstest.MapFS
	// RootFileSystem is what contracts say of the root partition; "" for ext4.
	RootFileSystem string
}

// New makes a machine.
func New(t testing.TB) *Machine {
	t.Helper()
	m := &Machine{t: t, disk: blocktest.Record(blocktest.New(size, blocktest.Zero)), Sys: hw.Disk{Name: "disk0", SectorSize: 512, Sectors: size / 512}, Files: fstest.MapFS{}}
	first := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: 512, Sectors: size / 512, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: gpt.GUID{2}, First: 2048, Last: 2048 + layout.ESPSize/512 - 1, Label: layout.ESPLabel},
		{Number: 2, Type: layout.TypeRoot, UUID: gpt.GUID{3}, First: 2 << 20, Last: 2<<20 + slotSize/512 - 1, Label: layout.SlotA.SystemLabel()},
	}}
	plan, err := layout.NewPlan(first, slotSize, bytes.NewReader(bytes.Repeat([]byte("0123456789abcdefghijklmnop"), 8)))
	m.must(err)
	m.must(plan.Table.Write(m.disk))
	return m
}

// Grow has each slot lie in two extents: half of an image that is installed is in each.
func (m *Machine) Grow() {
	m.t.Helper()
	m.must(layouttest.Divide(m.t, m.table(), 512<<10, 4*verity.BlockSize).Write(m.disk))
}

// Lose takes the partition with a role out of the table.
func (m *Machine) Lose(r layout.Role) {
	m.t.Helper()
	table := m.table()
	table.Partitions = slices.DeleteFunc(table.Partitions, func(p gpt.Partition) bool { return layout.RoleOf(p) == r })
	m.must(table.Write(m.disk))
}

func (m *Machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// Install puts a release into a slot, with a UKI of that file name.
func (m *Machine) Install(s layout.Slot, file string) *contract.Contract {
	m.t.Helper()
	n, err := bls.Parse(file)
	m.must(err)
	image := bytes.Repeat([]byte(n.Version.String()+" "), 1<<20)[:1<<20]
	c := &contract.Contract{
		Format: contract.Format, ImageID: n.ImageID, Arch: "x86_64", Version: n.Version, Salt: []byte{1}, ImageSize: int64(len(image)), SlotSize: slotSize,
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: cmp.Or(m.RootFileSystem, "ext4"), RootHash: make([]byte, 32),
	}
	data, tree := m.Partition(s.System()), m.Partition(s.Verity())
	_, err = data.WriteAt(image, 0)
	m.must(err)
	root, err := verity.Generate(context.Background(), data, c.VerityParams(), tree, nil)
	m.must(err)
	c.RootHash = root[:]
	// Again, since the superblock carries a UUID that the root hash gives.
	_, err = verity.Generate(context.Background(), data, c.VerityParams(), tree, nil)
	m.must(err)
	m.must(layout.Rename(m.table(), s, layout.SystemUUID(root), layout.VerityUUID(root)).Write(m.disk))
	first, err := contract.Archive(c)
	m.must(err)
	m.Files[path.Join(bls.Directory, file)] = &fstest.MapFile{Data: ukitest.Image(ukitest.Section{Name: ".initrd", Data: first})}
	return c
}

func (m *Machine) table() *gpt.Table {
	table, _, err := gpt.Read(m.disk, size/512, 512)
	m.must(err)
	return table
}

// Partition is a partition's content.
func (m *Machine) Partition(r layout.Role) block.Device {
	m.t.Helper()
	s, err := layout.Content(m.disk, m.table(), r)
	m.must(err)
	return s
}

// Hardware is what an inventory needs of the machine.
func (m *Machine) Hardware() hw.Machine {
	return hw.Machine{Disks: disks{m}, Firmware: firmware{}, ESP: esp{m}}
}

type disks struct{ m *Machine }

type file struct{ block.Device }

func (file) Close() error { return nil }

func (d disks) List() ([]hw.Disk, error)                           { return []hw.Disk{d.m.Sys}, nil }
func (d disks) Open(hw.Disk, bool) (hw.File, error)                { return file{d.m.disk}, nil }
func (d disks) PartitionPath(hw.Disk, layout.Role) (string, error) { return "", errors.ErrUnsupported }
func (d disks) Reread(hw.Disk) error                               { return errors.ErrUnsupported }

func (d disks) OpenPartition(_ hw.Disk, r layout.Role, _ bool) (hw.File, error) {
	return file{d.m.Partition(r)}, nil
}

type firmware struct{}

func (firmware) LoaderString(string) (string, error)        { return "", nil }
func (firmware) Flag(string) (bool, error)                  { return false, nil }
func (firmware) BootedFrom() ([]bootoption.Function, error) { return nil, nil }

type esp struct{ m *Machine }

func (e esp) Read(_ hw.Disk, read func(fs.FS) error) error       { return read(e.m.Files) }
func (e esp) Write(_ hw.Disk, write func(hw.ESPDir) error) error { return write(dir{m: e.m}) }

// dir lists and renames; it has nothing else.
type dir struct {
	hw.ESPDir
	m *Machine
}

// List implements hw.ESPDir.
func (d dir) List(directory string) (out []enroll.FileInfo, err error) {
	for name, f := range d.m.Files {
		if path.Dir(name) == directory {
			out = append(out, enroll.FileInfo{Name: path.Base(name), Size: int64(len(f.Data))})
		}
	}
	return out, nil
}

// Rename implements hw.ESPDir.
func (d dir) Rename(from, to string) error {
	f, ok := d.m.Files[from]
	if !ok {
		return fs.ErrNotExist
	}
	if _, ok := d.m.Files[to]; ok {
		return fs.ErrExist
	}
	delete(d.m.Files, from)
	d.m.Files[to] = f
	return nil
}
func (esp) Repair(hw.Disk, []string) (int64, error) { return 0, errors.ErrUnsupported }
func (esp) Exchange(hw.Disk, string, string) error  { return errors.ErrUnsupported }
