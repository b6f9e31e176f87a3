package verity

import (
	"context"
	"fmt"
	"io"
)

// Generate writes the superblock and the tree over the first p.DataBlocks
// blocks of data to hash, and returns the root hash. It reads and hashes on
// all cores, holds a few MiB whatever the size, and writes every level front
// to back. data must allow concurrent reads, as io.ReaderAt asks for.
//
// progress, which may be nil, is told from the caller's goroutine how many
// bytes of data are done. Nothing is synced: that and the comparison with the
// root hash that was expected are the caller's.
func Generate(ctx context.Context, data io.ReaderAt, p Params, hash io.WriterAt, progress func(doneBytes int64)) (Root, error) {
	if err := p.validate(); err != nil {
		return Root{}, err
	}
	t, err := newTree(p, hash)
	if err != nil {
		return Root{}, err
	}
	if p.DataBlocks == 1 {
		// Without a level there is nothing to collect: as veritysetup does it,
		// the only block's digest is the root hash.
		if err := ctx.Err(); err != nil {
			return Root{}, err
		}
		block := make([]byte, BlockSize)
		if err := readFull(data, block, 0, "data"); err != nil {
			return Root{}, err
		}
		t.hasher.sum(&t.root, block)
	} else if err := generateLeaves(ctx, data, p, t, progress); err != nil {
		return Root{}, err
	}
	// The superblock goes last, so that tools never take a tree that was cut
	// short for a whole one. The boot does not read it.
	if _, err := hash.WriteAt(p.superblock(), 0); err != nil {
		return Root{}, fmt.Errorf("verity: write superblock: %w", err)
	}
	if progress != nil && p.DataBlocks == 1 {
		progress(BlockSize)
	}
	return t.root, nil
}

func generateLeaves(ctx context.Context, data io.ReaderAt, p Params, t *tree, progress func(int64)) error {
	work := func(h *hasher, c *chunk) {
		c.err = readFull(data, c.blocks, int64(c.index)*chunkSize, "data")
		if c.err == nil {
			h.sums(&c.above, c.blocks)
			h.sum(&c.digest, c.above[:])
		}
	}
	collect := func(c *chunk) error {
		if err := t.emit(0, c.above[:], &c.digest); err != nil {
			return err
		}
		if progress != nil {
			progress(int64(c.index)*chunkSize + int64(len(c.blocks)))
		}
		return nil
	}
	if err := pass(ctx, p.DataBlocks, work, collect, p.Salt); err != nil {
		return err
	}
	return t.finish()
}

// writeSize is how much of a level is gathered before it is written.
const writeSize = 16 * BlockSize

// tree takes the hash blocks of the leaves in order and grows the levels
// above them as they fill, so that nothing is ever read back.
type tree struct {
	hash   io.WriterAt
	hasher *hasher
	levels []growing
	root   Root
}

// growing is a level under construction.
type growing struct {
	next    int64  // offset on the hash device of the next write
	pending []byte // whole blocks not written yet
	open    []byte // digests of a block that is not full yet
}

func newTree(p Params, hash io.WriterAt) (*tree, error) {
	levels, err := Levels(p.DataBlocks)
	if err != nil {
		return nil, err
	}
	t := &tree{hash: hash, hasher: newHasher(p.Salt)}
	for _, l := range levels {
		size := int(min(l.Blocks*BlockSize, writeSize))
		t.levels = append(t.levels, growing{next: l.Offset, pending: make([]byte, 0, size), open: make([]byte, 0, BlockSize)})
	}
	return t, nil
}

// emit takes a finished hash block of a level and its digest.
func (t *tree) emit(level int, block []byte, digest *Root) error {
	l := &t.levels[level]
	l.pending = append(l.pending, block...)
	if len(l.pending) >= writeSize {
		if err := t.write(level); err != nil {
			return err
		}
	}
	if level+1 == len(t.levels) {
		t.root = *digest
		return nil
	}
	up := &t.levels[level+1]
	up.open = append(up.open, digest[:]...)
	if len(up.open) == BlockSize {
		return t.closeBlock(level + 1)
	}
	return nil
}

// closeBlock pads a level's open block with zeros and emits it.
func (t *tree) closeBlock(level int) error {
	l := &t.levels[level]
	n := len(l.open)
	block := l.open[:BlockSize]
	clear(block[n:])
	l.open = l.open[:0]
	var digest Root
	t.hasher.sum(&digest, block)
	return t.emit(level, block, &digest)
}

// write writes what is pending of a level.
func (t *tree) write(level int) error {
	l := &t.levels[level]
	if _, err := t.hash.WriteAt(l.pending, l.next); err != nil {
		return fmt.Errorf("verity: write level %d at offset %d: %w", level, l.next, err)
	}
	l.next += int64(len(l.pending))
	l.pending = l.pending[:0]
	return nil
}

// finish closes the last block of every level and writes what is left, from
// the leaves up.
func (t *tree) finish() error {
	for level := range t.levels {
		if len(t.levels[level].open) > 0 {
			if err := t.closeBlock(level); err != nil {
				return err
			}
		}
		if len(t.levels[level].pending) > 0 {
			if err := t.write(level); err != nil {
				return err
			}
		}
	}
	return nil
}
