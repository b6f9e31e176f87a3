package machinetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/boot/shrink/shrinktest"
	"halogenos.internal/initagent/hw"
)

// snapshotNode is the device node of a snapshot of the root partition.
const snapshotNode = "/dev/dm-7"

// A rootSnapshot is the kernel's, of the root partition.
type rootSnapshot struct {
	name  string
	store *shrinktest.Store
	size  int64 // of the store, in bytes
	used  int64
	full  bool
	open  bool // a volume is open on it
}

// The blocks of a simulated file system: a superblock, which is that of an ext4 as far as its
// end goes, and says where each block of data is. Encryption is left out.
const (
	firstBlock = luks2.DataOffset / shrink.ChunkSize
	listAt     = 2048 // in the superblock
)

// blocks is the simulated file system.
type blocks struct {
	end  int64 // bytes
	data []uint16
}

func blockOf(i int) []byte {
	return bytes.Repeat([]byte{byte(i), byte(i >> 8), 0xda, 0x7a}, shrink.ChunkSize/4)
}

// superblock has the data's places in units of a sixteenth MiB: no two have the same.
func (b *blocks) superblock() []byte {
	out := make([]byte, shrink.ChunkSize)
	le := binary.LittleEndian
	le.PutUint32(out[1024+4:], uint32(b.end/4096))
	le.PutUint32(out[1024+0x18:], 2)
	le.PutUint16(out[1024+0x38:], 0xef53)
	le.PutUint16(out[listAt:], uint16(len(b.data)))
	for i, at := range b.data {
		le.PutUint16(out[listAt+2+2*i:], at)
	}
	return out
}

const unit = 64 << 10 // bytes, of a place

func place(at uint16) int64 { return luks2.DataOffset + int64(at)*unit }

// readBlocks reads the superblock of the root partition; nil where there is none.
func (m *Machine) readBlocks() (*blocks, error) {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return nil, err
	}
	b := make([]byte, shrink.ChunkSize)
	if _, err := s.ReadAt(b, luks2.DataOffset); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint16(b[1024+0x38:]) != 0xef53 {
		return nil, nil
	}
	out := &blocks{end: int64(le.Uint32(b[1024+4:])) * 4096, data: make([]uint16, le.Uint16(b[listAt:]))}
	for i := range out.data {
		out.data[i] = le.Uint16(b[listAt+2+2*i:])
	}
	return out, nil
}

// FillsRoot gives the root partition n blocks of data at its end, one in so many bytes.
func (m *Machine) FillsRoot(n int, every int64) {
	m.T.Helper()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	b := &blocks{end: s.Size() - luks2.DataOffset}
	for i := range n {
		at := uint16((b.end - int64(i+1)*every) / unit)
		b.data = append(b.data, at)
		_, err := s.WriteAt(blockOf(i), place(at))
		m.Must(err)
	}
	_, err = s.WriteAt(b.superblock(), luks2.DataOffset)
	m.Must(errors.Join(err, s.Sync()))
}

// CheckBlocks is the error of a root partition whose data is not all there.
func (m *Machine) CheckBlocks() error {
	b, err := m.readBlocks()
	if b == nil || err != nil {
		return err
	}
	s, err := m.Partition(layout.Root)
	if err != nil {
		return err
	}
	if b.end > s.Size()-luks2.DataOffset {
		return fmt.Errorf("the file system ends at %d, and the volume at %d", b.end, s.Size()-luks2.DataOffset)
	}
	have := make([]byte, shrink.ChunkSize)
	for i, at := range b.data {
		if _, err := s.ReadAt(have, place(at)); err != nil {
			return err
		}
		if !bytes.Equal(have, blockOf(i)) {
			return fmt.Errorf("block %d of the data, at %d, is lost", i, place(at))
		}
	}
	return nil
}

// moved are the chunks that change where the file system is made so long. The superblock is the
// first: as long as not all of them are at their places, data is missing.
func (b *blocks) moved(size int64) (list []shrinktest.Chunk) {
	free := uint16(1)
	for i, at := range b.data {
		if int64(at)*unit < size {
			continue
		}
		for slices.Contains(b.data, free) {
			free++
		}
		b.data[i] = free
		list = append(list, shrinktest.Chunk{Number: uint64(place(b.data[i]) / shrink.ChunkSize), Content: blockOf(i)})
	}
	b.end = size
	return slices.Insert(list, 0, shrinktest.Chunk{Number: firstBlock, Content: b.superblock()})
}

// CanResize implements hw.Store.
func (s Store) CanResize(string, string) error { return s.M.NoResize }

// FileSystemEnd implements hw.Store.
func (s Store) FileSystemEnd(string, string) (int64, error) {
	if s.M.NoEnd != nil {
		return 0, s.M.NoEnd
	}
	b, err := s.M.readBlocks()
	if err != nil || b != nil {
		return b.end, err
	}
	p, err := s.M.Partition(layout.Root)
	if err != nil {
		return 0, err
	}
	return p.Size() - luks2.DataOffset, nil
}

// Resize implements hw.Store. What btrfs moves it writes elsewhere first, and then what says so.
func (s Store) Resize(kind, device, _ string, size int64) error {
	b, err := s.M.readBlocks()
	if err != nil || b == nil {
		return errors.Join(err, errors.New("there are no blocks"))
	}
	if s.M.ResizeFails != nil {
		return s.M.ResizeFails
	}
	list := b.moved(size)
	if kind == "btrfs" {
		p, err := s.M.Partition(layout.Root)
		for _, c := range append(list[1:], list[0]) {
			if err == nil && c.Number == firstBlock {
				err = p.Sync()
			}
			if err == nil {
				_, err = p.WriteAt(c.Content, int64(c.Number)*shrink.ChunkSize)
			}
		}
		return errors.Join(err, p.Sync())
	}
	if snap := s.M.snapshot; snap == nil || !snap.open || device != "/dev/dm-1" {
		s.M.T.Error("resize2fs runs on the root partition itself")
		return errors.New("not on a snapshot")
	}
	for _, c := range list {
		if err := s.M.snapshot.add(c); err != nil {
			return err
		}
	}
	return nil
}

// add puts a chunk into the store, as long as there is room: one in 257 is a list.
func (r *rootSnapshot) add(c shrinktest.Chunk) error {
	chunks := r.used/shrink.ChunkSize + 1
	if r.full || (2+chunks+chunks/256)*shrink.ChunkSize > r.size {
		r.full = true
		return errors.Join(errors.New("input/output error"), r.store.Invalidate())
	}
	r.used += shrink.ChunkSize
	return r.store.Add(c)
}

// OpenSnapshot implements hw.Mapper.
func (p mapper) OpenSnapshot(s hw.Snapshot) (string, error) {
	root, err := p.m.Partition(layout.Root)
	if err != nil {
		return "", err
	}
	if p.m.OpenVolume != nil || p.m.snapshot != nil || s.Origin != "/dev/disk0-root" || s.Size != root.Size() {
		p.m.T.Errorf("a snapshot %+v, while the root partition is in use or is another one", s)
		return "", errors.New("no snapshot")
	}
	var store *block.Joined
	for _, slot := range layout.Slots {
		if s.Store == "/dev/disk0-"+slot.System().String() && slot != p.m.Agent.State.Booted {
			store, err = p.m.Partition(slot.System())
		}
	}
	if err != nil || store == nil {
		return "", fmt.Errorf("no store %s: %w", s.Store, err)
	}
	head := make([]byte, 4)
	if _, err := store.ReadAt(head, 0); err != nil || !block.IsZero(head) {
		p.m.T.Error("the store of the snapshot was not emptied")
	}
	p.m.snapshotMade = true
	p.m.snapshot = &rootSnapshot{name: s.Name, size: store.Size()}
	p.m.snapshot.store, err = shrinktest.New(store)
	return snapshotNode, err
}

// SnapshotUse implements hw.Mapper.
func (p mapper) SnapshotUse(name string) (int64, error) {
	if p.m.snapshot == nil || p.m.snapshot.name != name {
		return 0, fmt.Errorf("no snapshot %s", name)
	}
	if p.m.snapshot.full {
		return 0, shrink.ErrOverflow
	}
	return p.m.snapshot.used, nil
}

// checkOrder is called before a write: the header may say that a store waits only once all of
// the store is on the disk. The write to the header is the first one after the snapshot.
func (m *Machine) checkOrder(off int64) {
	if !m.snapshotMade {
		return
	}
	table, _, err := m.Table()
	if err != nil {
		return
	}
	within := func(r layout.Role, off, size int64) bool {
		p, err := layout.Find(table, r)
		at, length := table.Bytes(p)
		return err == nil && off >= at && off < at+min(length, size)
	}
	if !within(layout.Root, off, 2*luks2.DataOffset) {
		return
	}
	for _, w := range m.Disk.pending {
		if within(m.Agent.State.Booted.Other().System(), w.Off, layout.MaxSlot) {
			m.T.Error("the root partition is written to before the store is on the disk")
			return
		}
	}
}

// openAt checks the device that a volume is opened on.
func (p mapper) openAt(device string) error {
	if device == snapshotNode && p.m.snapshot != nil {
		p.m.snapshot.open = true
		return nil
	}
	if p.m.snapshot != nil {
		p.m.T.Error("the root partition is opened while there is a snapshot of it")
	}
	header, err := p.m.Header()
	if err != nil {
		return err
	}
	if waits, err := header.Redo(); waits != nil || err != nil {
		p.m.T.Errorf("the root partition is opened while %+v waits, %v", waits, err)
	}
	if err := p.m.CheckBlocks(); err != nil {
		p.m.T.Errorf("data loss: %v", err)
	}
	return nil
}

// closeSnapshot closes what has this name, where that is the snapshot.
func (p mapper) closeSnapshot(name string) (is bool, err error) {
	if p.m.snapshot == nil || p.m.snapshot.name != name {
		return false, nil
	}
	if p.m.snapshot.open {
		return true, errors.New("device is busy")
	}
	p.m.snapshot = nil
	return true, nil
}
