// Package shrinktest lays out a snapshot's store as the kernel does (drivers/md/dm-snap-persistent.c).
//
// No program imports it: boot/imports_test.go.
package shrinktest

import (
	"encoding/binary"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/shrink"
)

// A Chunk is what a snapshot has for a chunk of its origin.
type Chunk struct {
	Number  uint64
	Content []byte // of shrink.ChunkSize bytes
}

const perArea = shrink.ChunkSize / 16

// A Store is one that is being written.
type Store struct {
	d    block.Device
	area []byte
	at   uint64 // of the area
	n    int    // pairs in it
}

// New writes the header and the first area, as the kernel does for a store without a header.
func New(d block.Device) (*Store, error) {
	s := &Store{d: d, area: make([]byte, shrink.ChunkSize), at: 1}
	if err := s.header(1); err != nil {
		return nil, err
	}
	return s, s.write(s.at, s.area)
}

func (s *Store) header(valid uint32) error {
	b := make([]byte, shrink.ChunkSize)
	for i, v := range []uint32{0x70416e53, valid, 1, shrink.ChunkSectors} {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
	return s.write(0, b)
}

// Invalidate is what the kernel does where a store is full.
func (s *Store) Invalidate() error { return s.header(0) }

func (s *Store) write(chunk uint64, b []byte) error {
	_, err := s.d.WriteAt(b, int64(chunk)*shrink.ChunkSize)
	return err
}

// Add puts a chunk into the store. The area after a full one is cleared before the full one
// is written.
func (s *Store) Add(c Chunk) error {
	fresh := s.at + 1 + uint64(s.n)
	if err := s.write(fresh, c.Content); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(s.area[16*s.n:], c.Number)
	binary.LittleEndian.PutUint64(s.area[16*s.n+8:], fresh)
	s.n++
	full := s.n == perArea
	if full {
		if err := s.write(s.at+perArea+1, make([]byte, shrink.ChunkSize)); err != nil {
			return err
		}
	}
	if err := s.write(s.at, s.area); err != nil {
		return err
	}
	if full {
		s.at, s.n = s.at+perArea+1, 0
		clear(s.area)
	}
	return nil
}
