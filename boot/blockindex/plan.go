package blockindex

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"halogenos.internal/boot/verity"
)

// Where the blocks of a file come from.
const (
	fromArchive uint8 = iota
	fromNowhere       // zeros
	inPlace
	fromSource
	fromPatch
)

// A Plan says where each block of a part of a file comes from: it is in place,
// all zeros, in a source that the machine has, such as its active slot, made by a patch,
// or in the archive. A fresh plan takes all from the archive. It takes a byte a block,
// and with a source 8 more and 256 KiB. It belongs to one goroutine.
//
// What it is told and what it tells is counted from the file's start; its own
// fields count from the part's.
type Plan struct {
	part  *Part
	start int // the part's first block
	from  []uint8
	// source has the source's block for those that come from there. Like all
	// that follows it is empty until there is a source.
	source []uint32
	// order has the blocks sorted by digest, so that those that a source has
	// are found while it is read, and nothing of the source is kept.
	order []uint32
	// ends has for each value of a digest's first 16 bits where the blocks
	// with it end in order.
	ends []uint32
	// seen has a bit for the first block with each digest, set when a source
	// has it: a second one with it is then passed by at once, however many
	// blocks are the same.
	seen []uint64
}

// NewPlan plans a part of a file of a release with that verity salt. The part
// must stay as it is.
func NewPlan(part *Part, salt []byte) *Plan {
	start, end := part.BlockSpan()
	p := &Plan{part: part, start: start, from: make([]uint8, end-start)}
	nothing := NewHasher(salt).Sum(nil)
	for i := range p.from {
		if part.Hash(start+i) == nothing {
			p.from[i] = fromNowhere
		}
	}
	return p
}

// sort makes what blocks are found with by their digests.
func (p *Plan) sort() {
	n := len(p.from)
	p.source = make([]uint32, n)
	p.order, p.ends, p.seen = make([]uint32, n), make([]uint32, 1<<16), make([]uint64, (n+63)/64)
	for i := range n {
		p.ends[bucketOf(p.part.Hash(p.start+i))]++
	}
	sum := uint32(0)
	for i, count := range p.ends {
		p.ends[i] = sum // where they start, for now
		sum += count
	}
	for i := range n {
		bucket := bucketOf(p.part.Hash(p.start + i))
		p.order[p.ends[bucket]] = uint32(i)
		p.ends[bucket]++
	}
	first := uint32(0)
	for _, end := range p.ends {
		slices.SortFunc(p.order[first:end], func(a, b uint32) int {
			return cmp.Or(bytes.Compare(p.hash(a), p.hash(b)), cmp.Compare(a, b))
		})
		first = end
	}
}

func bucketOf(h Hash) uint16 { return binary.BigEndian.Uint16(h[:]) }

func (p *Plan) hash(block uint32) []byte {
	return p.part.hashes[int(block)*HashSize:][:HashSize]
}

// set notes that the source has the blocks with a digest, unless something better
// is known.
func (p *Plan) set(h Hash, source uint32) {
	bucket, first := bucketOf(h), uint32(0)
	if bucket > 0 {
		first = p.ends[bucket-1]
	}
	blocks := p.order[first:p.ends[bucket]]
	i := sort.Search(len(blocks), func(i int) bool { return bytes.Compare(p.hash(blocks[i]), h[:]) >= 0 })
	if at := int(first) + i; i < len(blocks) {
		if p.seen[at/64]&(1<<(at%64)) != 0 {
			return
		}
		if bytes.Equal(p.hash(blocks[i]), h[:]) {
			p.seen[at/64] |= 1 << (at % 64)
		}
	}
	for _, block := range blocks[i:] {
		if !bytes.Equal(p.hash(block), h[:]) {
			return
		}
		if p.from[block] == fromArchive {
			p.from[block], p.source[block] = fromSource, source
		}
	}
}

// Have says that the source has a block with this digest. The first of equal
// ones counts, and that it is so is checked when it is copied.
func (p *Plan) Have(source int, h Hash) {
	if source < 0 || source >= MaxBlocks {
		return
	}
	if p.order == nil {
		p.sort()
	}
	p.set(h, uint32(source))
}

// HaveFile takes the digests of a source that is a file of a release with the same salt from
// its block index. Its blocks are counted from first on.
func (p *Plan) HaveFile(f *File, first int) error {
	var part Part
	for n := range f.Parts() {
		if err := part.Load(f, n); err != nil {
			return err
		}
		start, end := part.BlockSpan()
		// A part of a block at a file's end is not a source.
		for i := start; i < min(end, int(f.Size/BlockSize)); i++ {
			p.Have(first+i, part.Hash(i))
		}
	}
	return nil
}

// readAhead is how much of a source is read at once.
const readAhead = 16 * BlockSize

// HaveTree takes the source's digests from its verity tree, which has the same
// salt. blocks is the number of the source's blocks.
func (p *Plan) HaveTree(ctx context.Context, tree io.ReaderAt, blocks uint64) error {
	if blocks > MaxBlocks {
		return fmt.Errorf("source of %d blocks, at most %d are possible", blocks, MaxBlocks)
	}
	levels, err := verity.Levels(blocks)
	if err != nil || len(levels) == 0 {
		return err // the tree of a single block has no digest of it
	}
	const digest = 32
	leaves := io.NewSectionReader(tree, levels[0].Offset, int64(blocks)*digest)
	return pieces(ctx, leaves, int64(blocks)*digest, func(at int64, b []byte) {
		for i := 0; i+digest <= len(b); i += digest {
			p.Have(int(at+int64(i))/digest, Hash(b[i:]))
		}
	})
}

// HaveContent hashes a source of size bytes. salt is the release's.
func (p *Plan) HaveContent(ctx context.Context, source io.ReaderAt, size int64, salt []byte) error {
	if size < 0 || size > MaxBlocks*BlockSize {
		return fmt.Errorf("source of %d bytes, at most %d are possible", size, int64(MaxBlocks*BlockSize))
	}
	h := NewHasher(salt)
	return pieces(ctx, source, size, func(at int64, b []byte) {
		b = b[:len(b)/BlockSize*BlockSize] // a part of a block is not a source
		for n, sum := range h.All(b) {
			p.Have(int(at/BlockSize)+n, sum)
		}
	})
}

// pieceSize is how much of the destination a goroutine reads at once, and
// maxReaders bounds how many there are.
const (
	pieceSize  = 64 * BlockSize
	maxReaders = 4
)

// InPlace finds the part's blocks that the destination holds in their place
// already, such as those that an earlier try has written. The destination must not
// be shorter than the file. It is read and hashed on several cores.
func (p *Plan) InPlace(ctx context.Context, destination io.ReaderAt, salt []byte) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start, end := p.part.ByteSpan()
	var next atomic.Int64
	next.Store(start)
	var work sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), maxReaders) {
		work.Go(func() {
			h, buffer := NewHasher(salt), make([]byte, pieceSize)
			for ctx.Err() == nil {
				at := next.Add(pieceSize) - pieceSize
				if at >= end {
					return
				}
				b := buffer[:min(pieceSize, end-at)]
				if err := readFull(destination, b, at); err != nil {
					cancel(err)
					return
				}
				p.compare(int(at/BlockSize), b, h)
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// compare notes which blocks of b, the destination's from first on, are in
// place. Several goroutines may compare different blocks.
func (p *Plan) compare(first int, b []byte, h *Hasher) {
	note := func(block int, sum Hash) {
		if sum == p.part.Hash(block) {
			p.from[block-p.start] = inPlace
		}
	}
	if b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) { // as in a slot that is new: one digest does
		nothing := h.Sum(nil)
		for i := range Blocks(int64(len(b))) {
			note(first+i, nothing)
		}
		return
	}
	for i, sum := range h.All(b) {
		note(first+i, sum)
	}
}

// pieces reads size bytes in pieces of whole blocks.
func pieces(ctx context.Context, r io.ReaderAt, size int64, take func(at int64, b []byte)) error {
	buffer := make([]byte, readAhead)
	for at := int64(0); at < size; at += readAhead {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buffer[:min(readAhead, size-at)]
		if err := readFull(r, b, at); err != nil {
			return err
		}
		take(at, b)
	}
	return nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(b), at, err)
}

// Refuse says that what the source has for a block, or what is in place, is
// not what it was said to be: it comes from the archive.
func (p *Plan) Refuse(block int) { p.from[block-p.start] = fromArchive }

// Written says that a block was written, as it should be: it is in place.
func (p *Plan) Written(block int) { p.from[block-p.start] = inPlace }

// InItsPlace reports whether the destination holds a block already.
func (p *Plan) InItsPlace(block int) bool { return p.from[block-p.start] == inPlace }

// Patch says that a patch makes some of the file's blocks, of which those count that would
// come from the archive, or with on false that it does not. It returns how many these are.
func (p *Plan) Patch(first, blocks int, on bool) int {
	was, is := fromArchive, fromPatch
	if !on {
		was, is = is, was
	}
	count := 0
	for i := max(first-p.start, 0); i < min(first+blocks-p.start, len(p.from)); i++ {
		if p.from[i] == was {
			p.from[i] = is
			count++
		}
	}
	return count
}

// Patched reports whether a patch makes a block. One that is not of the part is not.
func (p *Plan) Patched(block int) bool {
	return block >= p.start && block-p.start < len(p.from) && p.from[block-p.start] == fromPatch
}

// Wanted reports whether one of the part's blocks comes from the archive.
func (p *Plan) Wanted(block int) bool { return p.from[block-p.start] == fromArchive }

// A Copy is a run of blocks that come from the source. Each is to be hashed
// and compared with the index.
type Copy struct {
	To, From int // first block of the file, and of the source
	Blocks   int
}

// Copies returns the runs of blocks to copy, in the file's order.
func (p *Plan) Copies() iter.Seq[Copy] {
	return func(yield func(Copy) bool) {
		for i := 0; i < len(p.from); {
			n := i + 1
			if p.from[i] == fromSource {
				for n < len(p.from) && p.from[n] == fromSource && p.source[n] == p.source[i]+uint32(n-i) {
					n++
				}
				if !yield(Copy{To: p.start + i, From: int(p.source[i]), Blocks: n - i}) {
					return
				}
			}
			i = n
		}
	}
}

// Zeros returns the runs of blocks that are all zeros, in the file's order.
func (p *Plan) Zeros() iter.Seq2[int, int] {
	return func(yield func(first, blocks int) bool) {
		for i := 0; i < len(p.from); {
			n := i
			for n < len(p.from) && p.from[n] == fromNowhere {
				n++
			}
			if n > i && !yield(p.start+i, n-i) {
				return
			}
			i = max(n, i+1)
		}
	}
}

// What machines use: a gap has at most a block that packs to next to nothing,
// and a range is large enough that asking for it costs little beside fetching it.
const (
	UsualGap   = 1 << 10
	UsualLimit = 2 << 20
)

// A Range is a part of the archive to fetch: whole gzip members of one file.
type Range struct {
	Offset, Size   int64 // bytes of the archive
	First, Members int   // members that lie there
}

// Ranges returns what to fetch, in the archive's order. Two ranges with at
// most gap bytes between them become one, with these bytes, unless it would be
// larger than limit; no range is, but for that of a single member.
func (p *Plan) Ranges(gap, limit int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var open Range
		first, last := p.part.MemberSpan()
		offset := p.part.File.runs[p.part.number].offset
		for i := first; i < last; i++ {
			size := int64(p.part.size(i))
			if p.wants(i) {
				end := open.Offset + open.Size
				if open.Members > 0 && (offset-end > gap || offset+size-open.Offset > limit) {
					if !yield(open) {
						return
					}
					open = Range{}
				}
				if open.Members == 0 {
					open = Range{Offset: offset, First: i}
				}
				open.Size, open.Members = offset+size-open.Offset, i+1-open.First
			}
			offset += size
		}
		if open.Members > 0 {
			yield(open)
		}
	}
}

// wants reports whether a member holds a block that is wanted.
func (p *Plan) wants(member int) bool {
	for i := p.part.File.First(member); i < p.part.File.First(member+1); i++ {
		if p.from[i-p.start] == fromArchive {
			return true
		}
	}
	return false
}

// A Cost says how much work a plan is.
type Cost struct {
	Blocks  int   // of the part
	Wanted  int   // blocks that come from the archive
	Copied  int   // blocks that come from the source
	Ranges  int   // requests
	Fetched int64 // bytes of these ranges
}

// Cost adds up what Ranges with the same gap and limit returns.
func (p *Plan) Cost(gap, limit int64) Cost {
	c := Cost{Blocks: len(p.from)}
	for _, from := range p.from {
		switch {
		case from == fromArchive:
			c.Wanted++
		case from == fromSource:
			c.Copied++
		}
	}
	for r := range p.Ranges(gap, limit) {
		c.Ranges++
		c.Fetched += r.Size
	}
	return c
}
