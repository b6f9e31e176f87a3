package verity

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// The areas that a CorruptError names.
const (
	AreaData       = "data"
	AreaHash       = "hash"
	AreaSuperblock = "superblock"
)

// CorruptError says which block does not match what the root hash vouches
// for. Where an upper level is corrupt nothing below it is judged.
type CorruptError struct {
	Area   string // AreaData, AreaHash or AreaSuperblock
	Level  int    // of a hash block: 0 are the leaves; -1 in the other areas
	Block  uint64 // within the data, or within the level
	Offset int64  // of the block, in bytes from the start of its device
}

// Error implements error.
func (e *CorruptError) Error() string {
	switch e.Area {
	case AreaData:
		return fmt.Sprintf("verity: data block %d (offset %d) is corrupt", e.Block, e.Offset)
	case AreaHash:
		return fmt.Sprintf("verity: hash block %d of level %d (offset %d) is corrupt", e.Block, e.Level, e.Offset)
	}
	return "verity: " + e.Area + " is not the expected one"
}

// Verify checks the whole tree and the first p.DataBlocks blocks of data
// against the root hash, from the top down: *CorruptError names the first
// block in that order which does not match its digest, so a wrong root hash or
// salt shows at the top. Checked too are the zeros behind the digests of a
// hash block, and the superblock, which must be the one that p makes. What
// lies behind the tree and behind the data is not looked at: the kernel never
// reads it.
//
// progress, which may be nil, is told from the caller's goroutine how many
// bytes of data are done.
func Verify(ctx context.Context, data, hash io.ReaderAt, p Params, root Root, progress func(doneBytes int64)) error {
	if err := p.validate(); err != nil {
		return err
	}
	levels, err := Levels(p.DataBlocks)
	if err != nil {
		return err
	}
	if err := verifyTop(data, hash, p, levels, root); err != nil {
		return err
	}
	for i := len(levels) - 1; i >= 0; i-- {
		below := area{name: AreaData, level: -1, r: data, blocks: p.DataBlocks}
		report := progress
		if i > 0 {
			below = area{AreaHash, i - 1, hash, levels[i-1].Offset, levels[i-1].Blocks}
			report = nil
		}
		above := area{AreaHash, i, hash, levels[i].Offset, levels[i].Blocks}
		if err := verifyBelow(ctx, above, below, p.Salt, report); err != nil {
			return err
		}
	}
	// Last, because it is not what the root hash vouches for.
	block := make([]byte, BlockSize)
	if err := readFull(hash, block, 0, AreaSuperblock); err != nil {
		return err
	}
	if !bytes.Equal(block, p.superblock()) {
		return &CorruptError{Area: AreaSuperblock, Level: -1}
	}
	if progress != nil && len(levels) == 0 {
		progress(BlockSize)
	}
	return nil
}

// CheckTop reads the one block that the root hash is the digest of, the top of
// the tree, or the data where that is a single block. It tells another image's
// tree, or none, from the right one at once; what lies below is not looked at.
func CheckTop(data, hash io.ReaderAt, p Params, root Root) error {
	if err := p.validate(); err != nil {
		return err
	}
	levels, err := Levels(p.DataBlocks)
	if err != nil {
		return err
	}
	return verifyTop(data, hash, p, levels, root)
}

// area is a run of blocks on a device.
type area struct {
	name   string
	level  int
	r      io.ReaderAt
	offset int64
	blocks uint64
}

func (a area) corrupt(block uint64) error {
	return &CorruptError{Area: a.name, Level: a.level, Block: block, Offset: a.offset + int64(block)*BlockSize}
}

// verifyTop checks the one block that the root hash is the digest of.
func verifyTop(data, hash io.ReaderAt, p Params, levels []Level, root Root) error {
	top := area{name: AreaData, level: -1, r: data}
	if n := len(levels); n > 0 {
		top = area{AreaHash, n - 1, hash, levels[n-1].Offset, levels[n-1].Blocks}
	}
	block := make([]byte, BlockSize)
	if err := readFull(top.r, block, top.offset, top.name); err != nil {
		return err
	}
	var got Root
	newHasher(p.Salt).sum(&got, block)
	if got != root {
		return top.corrupt(0)
	}
	return nil
}

// verifyBelow checks all blocks of an area against the digests in the level
// above, which has been checked itself.
func verifyBelow(ctx context.Context, above, below area, salt []byte, progress func(int64)) error {
	work := func(h *hasher, c *chunk) {
		if c.err = readFull(above.r, c.above[:], above.offset+int64(c.index)*BlockSize, above.name); c.err != nil {
			return
		}
		if c.err = readFull(below.r, c.blocks, below.offset+int64(c.index)*chunkSize, below.name); c.err != nil {
			return
		}
		var got [BlockSize]byte
		h.sums(&got, c.blocks)
		if got != c.above {
			c.err = firstDifference(above, below, c, &got)
		}
	}
	collect := func(c *chunk) error {
		if progress != nil {
			progress(int64(c.index)*chunkSize + int64(len(c.blocks)))
		}
		return nil
	}
	return pass(ctx, below.blocks, work, collect, salt)
}

// firstDifference names the first block whose digest differs, or the hash
// block itself where it is the padding that differs.
func firstDifference(above, below area, c *chunk, got *[BlockSize]byte) error {
	for i := range len(c.blocks) / BlockSize {
		if at := i * digestSize; Root(got[at:at+digestSize]) != Root(c.above[at:at+digestSize]) {
			return below.corrupt(c.index*fanOut + uint64(i))
		}
	}
	return above.corrupt(c.index)
}
