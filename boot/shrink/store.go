// Package shrink is what a root partition that is made smaller leaves on the disk for as
// long as that takes: the store of a snapshot, with each block that is to change, and where
// a file system ends.
//
// A snapshot is the kernel's (dm-snapshot), and so is the format of its store. What is in a
// store is copied to its place by [Store.Redo], which may be cut anywhere and begin again:
// a chunk that was copied before is copied once more.
//
// It refuses a store that would change anything outside the range that it is given, one that
// the kernel has given up, and one that is not the one that was measured ([Store.MAC]).
package shrink

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
)

// The persistent exception store (kernel, drivers/md/dm-snap-persistent.c). Chunk 0 is the
// header. Each area is a chunk of pairs, where a chunk is and where its new content is, and
// after it the chunks with the content that the pairs of the area name.
const (
	// ChunkSize is that of the stores which are made and read here, in bytes.
	ChunkSize = 4096
	// ChunkSectors is the same in the sectors of 512 bytes that the kernel counts in.
	ChunkSectors = ChunkSize / 512

	magic     = 0x70416e53
	version   = 1
	pairSize  = 16
	perArea   = ChunkSize / pairSize
	stride    = perArea + 1
	firstArea = 1

	// maxPairs bounds what is kept in memory; it is 16 GiB of changed chunks.
	maxPairs = 4 << 20
)

// ErrOverflow is wrapped where the kernel has marked a store as not valid: there was no room
// in it for all that was to change, or it could not be written.
var ErrOverflow = errors.New("the kernel has given the snapshot up: its store is full, or could not be written")

// ErrChanged says that a store is not the one that was measured.
var ErrChanged = errors.New("what was to be written to the root partition is not what was put aside for it")

// A Range is a part of the device that a store changes, in bytes. End is the first byte that
// is not in it.
type Range struct{ Start, End int64 }

type pair struct{ old, fresh uint64 }

// A Store is what a snapshot has changed.
type Store struct {
	r     io.ReaderAt
	pairs []pair
}

// Blank makes the kernel take a device for a new store: it must find no header.
func Blank(d block.Device) error {
	if _, err := d.WriteAt(make([]byte, 2*ChunkSize), 0); err != nil {
		return fmt.Errorf("empty the snapshot's store: %w", err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("empty the snapshot's store: %w", err)
	}
	return nil
}

// Open reads the pairs of a store of size bytes, which may change only what is in the range.
func Open(r io.ReaderAt, size int64, within Range) (*Store, error) {
	s := &Store{r: r}
	if err := s.read(uint64(size)/ChunkSize, within); err != nil {
		return nil, fmt.Errorf("read the snapshot's store: %w", err)
	}
	return s, nil
}

func (s *Store) read(chunks uint64, within Range) error {
	if err := s.header(); err != nil {
		return err
	}
	area := make([]byte, ChunkSize)
	for at := uint64(firstArea); at < chunks; at += stride {
		if err := s.chunk(area, at); err != nil {
			return err
		}
		for b := range slices.Chunk(area, pairSize) {
			p := pair{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
			if p.fresh == 0 {
				return s.distinct()
			}
			if err := p.check(chunks, within); err != nil {
				return err
			}
			if s.pairs = append(s.pairs, p); len(s.pairs) > maxPairs {
				return fmt.Errorf("it has more than %d chunks", maxPairs)
			}
		}
	}
	return errors.New("its list of chunks has no end")
}

func (s *Store) header() error {
	b := make([]byte, ChunkSize)
	if err := s.chunk(b, 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	switch {
	case le.Uint32(b) != magic:
		return errors.New("it has no header")
	case le.Uint32(b[4:]) != 1:
		return ErrOverflow
	case le.Uint32(b[8:]) != version || le.Uint32(b[12:]) != ChunkSectors:
		return fmt.Errorf("version %d with chunks of %d sectors, want %d and %d", le.Uint32(b[8:]), le.Uint32(b[12:]), version, ChunkSectors)
	}
	return nil
}

// check refuses a pair that leads out of the store or the range, or to what is no content.
func (p pair) check(chunks uint64, within Range) error {
	if p.fresh >= chunks || p.fresh%stride == firstArea {
		return fmt.Errorf("it has content at chunk %d of %d, where none can be", p.fresh, chunks)
	}
	if p.old < uint64(within.Start)/ChunkSize || p.old >= uint64(within.End)/ChunkSize {
		return fmt.Errorf("it changes chunk %d, want one of %d to %d", p.old, within.Start/ChunkSize, within.End/ChunkSize-1)
	}
	return nil
}

// distinct refuses two pairs for one chunk, and one content for two.
func (s *Store) distinct() error {
	for _, of := range []func(pair) uint64{func(p pair) uint64 { return p.old }, func(p pair) uint64 { return p.fresh }} {
		list := make([]uint64, 0, len(s.pairs))
		for _, p := range s.pairs {
			list = append(list, of(p))
		}
		slices.Sort(list)
		if len(slices.Compact(list)) != len(s.pairs) {
			return errors.New("it names a chunk twice")
		}
	}
	return nil
}

func (s *Store) chunk(b []byte, at uint64) error {
	if n, err := s.r.ReadAt(b, int64(at)*ChunkSize); n < len(b) {
		return fmt.Errorf("read chunk %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// Chunks is how many chunks the store changes.
func (s *Store) Chunks() int { return len(s.pairs) }

// MAC measures the store, each pair and its content, under a volume key (RFC 2104 and 5869).
// It tells that nobody has changed the store. It does not tell this store from an earlier one
// of the same volume: one who can put that back can put back the volume's own sectors, too.
func (s *Store) MAC(volumeKey []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, volumeKey, nil, "halogen root partition redo 1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("key of the snapshot's store: %w", err)
	}
	defer clear(key)
	m := hmac.New(sha256.New, key)
	m.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(s.pairs))))
	err = s.each(func(p pair, content []byte) error {
		m.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, p.old), p.fresh))
		m.Write(content)
		return nil
	})
	return m.Sum(nil), err
}

// Check compares the store with a measurement of MAC: it is nil or ErrChanged, or it could
// not be read.
func (s *Store) Check(volumeKey, mac []byte) error {
	have, err := s.MAC(volumeKey)
	if err != nil {
		return err
	}
	if !hmac.Equal(have, mac) {
		return ErrChanged
	}
	return nil
}

// Redo copies what the store has to its place on a device, and syncs. Cut anywhere, it is to
// be done again from its start: each chunk has one content in the store, which nothing of
// this changes. progress is called with the bytes of each step.
func (s *Store) Redo(d block.Device, progress func(int64)) error {
	err := s.each(func(p pair, content []byte) error {
		if _, err := d.WriteAt(content, int64(p.old)*ChunkSize); err != nil {
			return fmt.Errorf("write chunk %d of the root partition: %w", p.old, err)
		}
		progress(ChunkSize)
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the root partition: %w", err)
	}
	return nil
}

func (s *Store) each(do func(p pair, content []byte) error) error {
	content := make([]byte, ChunkSize)
	for _, p := range s.pairs {
		if err := s.chunk(content, p.fresh); err != nil {
			return fmt.Errorf("the snapshot's store: %w", err)
		}
		if err := do(p, content); err != nil {
			return err
		}
	}
	return nil
}
