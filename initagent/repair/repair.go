// Package repair makes a damaged slot whole, block by block, from whatever holds
// the same: the other slot, or the rest of this one.
//
// It refuses to write a block whose digest the root hash does not vouch for, all
// the way up. So nothing that it writes can be wrong, and a power cut in a write
// leaves a block that is as damaged as it was.
package repair

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/verity"
)

const (
	blockSize = verity.BlockSize
	fanOut    = blockSize / sha256.Size // digests in a hash block
	chunkSize = fanOut * blockSize
)

// A Slot is what is to be made whole, and from what.
type Slot struct {
	Params verity.Params
	Root   verity.Root
	// Data and Tree are the slot's own.
	Data, Tree block.Device
	// Others may hold the same blocks, anywhere; OtherTrees the same hash blocks,
	// in the same place.
	Others     []Source
	OtherTrees []io.ReaderAt
	// Progress is told how many bytes were looked at, and of how many; may be
	// nil.
	Progress func(done, total int64)
}

// A Source is where blocks are looked for.
type Source struct {
	io.ReaderAt
	Size int64 // bytes
}

// A Report says what was done.
type Report struct {
	Data int `json:"data_blocks"` // written
	Hash int `json:"hash_blocks"` // written
	// Missing are the data blocks that nothing holds, and Unknown counts those of
	// which nothing says any more what they were.
	Missing []uint64 `json:"missing,omitempty"`
	Unknown int      `json:"unknown,omitempty"`
}

// Whole reports whether every block is as the root hash says.
func (r *Report) Whole() bool { return len(r.Missing) == 0 && r.Unknown == 0 }

// ErrTree says that a hash block is lost which everything below hangs on.
var ErrTree = errors.New("the hash tree is damaged where nothing holds the same")

// run is one repair.
type run struct {
	*Slot
	levels []verity.Level
	wanted map[verity.Root][]uint64 // data blocks by the digest that they should have
	report Report
	done   int64
	total  int64
}

// Run repairs the slot. What it has written is flushed when it returns. The
// caller opens the slot again and verifies it: what was read back here may come
// from a cache.
func (s *Slot) Run(ctx context.Context) (Report, error) {
	levels, err := verity.Levels(s.Params.DataBlocks)
	if err != nil {
		return Report{}, err
	}
	r := &run{Slot: s, levels: levels, wanted: map[verity.Root][]uint64{}, total: int64(s.Params.DataBlocks) * blockSize}
	if err := r.hashes(ctx); err != nil {
		return r.report, err
	}
	if len(r.wanted) > 0 {
		if err := r.search(ctx); err != nil {
			return r.report, err
		}
	}
	for _, blocks := range r.wanted {
		r.report.Missing = append(r.report.Missing, blocks...)
	}
	slices.Sort(r.report.Missing)
	return r.report, errors.Join(s.Data.Sync(), s.Tree.Sync())
}

// digest is what the tree has for a block (hash type 1: the salt goes first).
func (s *Slot) digest(b []byte) (d verity.Root) {
	h := sha256.New()
	h.Write(s.Params.Salt)
	h.Write(b)
	h.Sum(d[:0])
	return d
}

// hashes restores the tree from the top down, and finds what is wrong below it.
func (r *run) hashes(ctx context.Context) error {
	if len(r.levels) == 0 {
		return r.judge(0, r.Root[:])
	}
	above := r.Root[:] // the digests of the blocks of a level, as they should be
	for level := len(r.levels) - 1; level > 0; level-- {
		next := make([]byte, 0, r.levels[level].Blocks*blockSize)
		for i := range r.levels[level].Blocks {
			b, err := r.hashBlock(level, i, above[i*sha256.Size:][:sha256.Size])
			if err != nil {
				return err
			}
			if b == nil {
				return fmt.Errorf("hash block %d of level %d: %w", i, level, ErrTree)
			}
			next = append(next, b...)
		}
		above = next
	}
	for i := range r.levels[0].Blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := r.hashBlock(0, i, above[i*sha256.Size:][:sha256.Size])
		if err != nil {
			return err
		}
		if b == nil {
			r.report.Unknown += int(min(fanOut, r.Params.DataBlocks-i*fanOut))
			continue
		}
		if err := r.judge(i, b); err != nil {
			return err
		}
	}
	return nil
}

// hashBlock returns a block of the tree as it should be: from the slot, from
// another tree, or computed from what lies below. It is written where it was
// not so. nil is one that nobody knows any more.
func (r *run) hashBlock(level int, i uint64, want []byte) ([]byte, error) {
	at := r.levels[level].Offset + int64(i)*blockSize
	is := func(b []byte) bool { d := r.digest(b); return string(d[:]) == string(want) }
	own := make([]byte, blockSize)
	if readFull(r.Tree, own, at) && is(own) {
		return own, nil
	}
	found := r.otherHashBlock(at, is)
	if found == nil {
		if b := r.computed(level, i); is(b) {
			found = b
		}
	}
	if found == nil {
		return nil, nil
	}
	if _, err := r.Tree.WriteAt(found, at); err != nil {
		return nil, fmt.Errorf("write hash block %d of level %d: %w", i, level, err)
	}
	r.report.Hash++
	return found, nil
}

func (r *run) otherHashBlock(at int64, is func([]byte) bool) []byte {
	b := make([]byte, blockSize)
	for _, other := range r.OtherTrees {
		if readFull(other, b, at) && is(b) {
			return b
		}
	}
	return nil
}

// computed is a block of the tree as what lies below says; zeros stand for what
// cannot be read, and no digest of anything is zero.
func (r *run) computed(level int, i uint64) []byte {
	var below io.ReaderAt = r.Data
	count, offset := r.Params.DataBlocks, int64(0)
	if level > 0 {
		below, count, offset = r.Tree, r.levels[level-1].Blocks, r.levels[level-1].Offset
	}
	b, child := make([]byte, blockSize), make([]byte, blockSize)
	for n := range min(fanOut, count-i*fanOut) {
		if readFull(below, child, offset+int64(i*fanOut+n)*blockSize) {
			d := r.digest(child)
			copy(b[n*sha256.Size:], d[:])
		}
	}
	return b
}

// judge compares the data blocks under a leaf with their digests, and notes what
// is not as it should be.
func (r *run) judge(leaf uint64, digests []byte) error {
	count := min(fanOut, r.Params.DataBlocks-leaf*fanOut)
	err := each(r.Data, int64(leaf)*chunkSize, int64(count)*blockSize, func(n int64, b []byte) error {
		want := verity.Root(digests[n*sha256.Size:][:sha256.Size])
		if b == nil || r.digest(b) != want {
			r.wanted[want] = append(r.wanted[want], leaf*fanOut+uint64(n))
		}
		return nil
	})
	r.progress(int64(count) * blockSize)
	return err
}

func (r *run) progress(bytes int64) {
	r.done += bytes
	if r.Progress != nil {
		r.Progress(r.done, r.total)
	}
}

// search looks for what is wanted wherever it may be: a block of zeros, the rest
// of the slot, and the others, by digest and not by place, since a release that
// moved a file holds its blocks elsewhere.
func (r *run) search(ctx context.Context) error {
	if err := r.offer(make([]byte, blockSize)); err != nil {
		return err
	}
	sources := append(slices.Clone(r.Others), Source{r.Data, int64(r.Params.DataBlocks) * blockSize})
	for _, s := range sources {
		r.total += s.Size
	}
	for _, s := range sources {
		for at := int64(0); at < s.Size && len(r.wanted) > 0; at += chunkSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			length := min(chunkSize, s.Size-at) / blockSize * blockSize
			err := each(s, at, length, func(_ int64, b []byte) error {
				if b == nil {
					return nil
				}
				return r.offer(b)
			})
			if err != nil {
				return err
			}
			r.progress(length)
		}
	}
	return nil
}

// offer writes a block wherever it is wanted.
func (r *run) offer(b []byte) error {
	d := r.digest(b)
	for _, n := range r.wanted[d] {
		if _, err := r.Data.WriteAt(b, int64(n)*blockSize); err != nil {
			return fmt.Errorf("write data block %d: %w", n, err)
		}
		r.report.Data++
	}
	delete(r.wanted, d)
	return nil
}

// each calls visit for every block of a part of r; one that cannot be read is
// nil.
func each(r io.ReaderAt, at, length int64, visit func(n int64, b []byte) error) error {
	buf := make([]byte, length)
	readable := readFull(r, buf, at)
	for n := range length / blockSize {
		b := buf[n*blockSize:][:blockSize]
		if !readable && !readFull(r, b, at+n*blockSize) {
			b = nil
		}
		if err := visit(n, b); err != nil {
			return err
		}
	}
	return nil
}

func readFull(r io.ReaderAt, b []byte, at int64) bool {
	n, err := r.ReadAt(b, at)
	return n == len(b) && (err == nil || errors.Is(err, io.EOF))
}
