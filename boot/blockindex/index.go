// Package blockindex tells which parts of a release's archive a machine lacks,
// and where they lie: the file system.index.
//
// The index has the digest of every 4 KiB block of the release's files, and
// the size of every gzip member that they are packed in. A block's digest is
// the start of the one that the image's verity tree has for it, so that a
// machine finds the blocks it has by reading the tree of its own slot, without
// hashing anything.
//
// It refuses an index that does not have exactly the blocks and members that
// the signed release.json calls for, and member sizes that do not add up to
// the file's. It does not look at signatures: whoever parses an index has
// compared its SHA-256 first. What the machine's own disk claims to hold is
// never believed: a block that is copied is hashed like one that is fetched.
package blockindex

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"iter"
	"math"

	"halogenos.internal/boot/internal/sha256pair"
	"halogenos.internal/boot/verity"
)

const (
	// BlockSize is what a digest covers, in bytes.
	BlockSize = verity.BlockSize
	// HashSize is how many bytes of a block's SHA-256 the index has. Another
	// block with the same 128 bits cannot be made, and the root hash covers
	// the whole image with all 256.
	HashSize = 16
	// MaxMemberBlocks bounds the blocks of a gzip member: the packed size of
	// more might not fit into 16 bits.
	MaxMemberBlocks = 15
	// MaxBlocks bounds the blocks of a file: 2 TiB.
	MaxBlocks = 1 << 29

	magic      = "HgIndex\x01"
	headerSize = 16
)

// A Hash is the start of the SHA-256 of the verity salt and a block.
type Hash [HashSize]byte

// A Hasher computes digests of blocks under one salt.
type Hasher struct {
	salt []byte
	sum  hash.Hash
	out  [sha256.Size]byte
	zero [BlockSize]byte
	pair *sha256pair.Hasher
	many [MaxMemberBlocks * sha256.Size]byte
}

// NewHasher returns a Hasher for the verity salt of a release.
func NewHasher(salt []byte) *Hasher {
	salt = bytes.Clone(salt)
	return &Hasher{salt: salt, sum: sha256.New(), pair: sha256pair.New(salt, BlockSize)}
}

// All yields the number in content, from 0 on, and the digest of each of its
// blocks, as Sum returns it; two at a time are computed where the processor can.
func (h *Hasher) All(content []byte) iter.Seq2[int, Hash] {
	return func(yield func(int, Hash) bool) {
		n := 0
		for whole := len(content) / BlockSize; n < whole; {
			some := min(whole-n, MaxMemberBlocks)
			h.pair.SumAll(h.many[:], content[n*BlockSize:(n+some)*BlockSize])
			for i := range some {
				if !yield(n, Hash(h.many[i*sha256.Size:])) {
					return
				}
				n++
			}
		}
		if rest := content[n*BlockSize:]; len(rest) > 0 {
			yield(n, h.Sum(rest))
		}
	}
}

// Sum returns the digest of a block. The last block of a file counts as if
// zeros followed up to its end. b must not be longer than a block.
func (h *Hasher) Sum(b []byte) Hash {
	h.sum.Reset()
	h.sum.Write(h.salt)
	h.sum.Write(b)
	h.sum.Write(h.zero[min(len(b), BlockSize):])
	return Hash(h.sum.Sum(h.out[:0]))
}

// A Place is where a file lies in an archive, as the signed release.json says.
type Place struct {
	Name   string
	Size   int64 // bytes of the file
	Offset int64 // of its first gzip member, in bytes from the archive's start
	Packed int64 // bytes of all its members
}

// Blocks is the number of blocks of a file of that many bytes.
func Blocks(size int64) int { return int((size + BlockSize - 1) / BlockSize) }

// members is the number of members that so many blocks are packed in.
func members(blocks, perMember int) int { return (blocks + perMember - 1) / perMember }

// An Index describes the files of a release. It is not changed after Parse,
// and many goroutines may use it.
type Index struct {
	memberBlocks int
	files        []*File
}

// A File is one file in an index.
type File struct {
	Place
	memberBlocks int
	hashes       []byte
	packed       []byte  // 16 bits a member
	marks        []int64 // offsets of each markth member
}

const mark = 64

// Parse reads the index of the files at these places. raw must be
// authenticated already, and belongs to the index from then on: it takes no
// more memory than that and one 512th.
func Parse(raw []byte, places []Place) (*Index, error) {
	if len(raw) < headerSize || string(raw[:len(magic)]) != magic {
		return nil, fmt.Errorf("block index of %d bytes does not start as one", len(raw))
	}
	per := binary.LittleEndian.Uint32(raw[len(magic):])
	if per < 1 || per > MaxMemberBlocks || !zero(raw[len(magic)+4:headerSize]) {
		return nil, fmt.Errorf("block index has members of %d blocks, want 1 to %d", per, MaxMemberBlocks)
	}
	size, err := Size(int(per), places)
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != size {
		return nil, fmt.Errorf("block index has %d bytes, want %d for these files", len(raw), size)
	}
	x := &Index{memberBlocks: int(per)}
	rest := raw[headerSize:]
	for _, p := range places {
		f := &File{Place: p, memberBlocks: x.memberBlocks}
		f.packed, rest = cut(rest, 2*members(Blocks(p.Size), x.memberBlocks))
		if err := f.measure(); err != nil {
			return nil, fmt.Errorf("block index of %s: %w", p.Name, err)
		}
		x.files = append(x.files, f)
	}
	for _, f := range x.files {
		f.hashes, rest = cut(rest, HashSize*Blocks(f.Size))
	}
	return x, nil
}

// Size returns the size in bytes of the index of files.
func Size(memberBlocks int, places []Place) (int64, error) {
	size := int64(headerSize)
	for _, p := range places {
		if p.Size < 1 || p.Size > MaxBlocks*BlockSize || p.Packed < 1 || p.Offset < 0 || p.Offset > math.MaxInt64-p.Packed {
			return 0, fmt.Errorf("%s: %d bytes at offset %d, packed into %d, cannot be", p.Name, p.Size, p.Offset, p.Packed)
		}
		blocks := Blocks(p.Size)
		size += 2*int64(members(blocks, memberBlocks)) + HashSize*int64(blocks)
	}
	return size, nil
}

func cut(b []byte, n int) (first, rest []byte) { return b[:n:n], b[n:] }

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// measure adds the members up.
func (f *File) measure() error {
	at := int64(0)
	for i := range f.Members() {
		if i%mark == 0 {
			f.marks = append(f.marks, f.Offset+at)
		}
		n := f.size(i)
		if n == 0 {
			return fmt.Errorf("member %d of 0 bytes", i)
		}
		at += int64(n)
	}
	if at != f.Packed {
		return fmt.Errorf("members of %d bytes in all, want %d", at, f.Packed)
	}
	return nil
}

func (f *File) size(member int) int { return int(binary.LittleEndian.Uint16(f.packed[2*member:])) }

// File returns what the index has about a file.
func (x *Index) File(name string) (*File, bool) {
	for _, f := range x.files {
		if f.Name == name {
			return f, true
		}
	}
	return nil, false
}

// Blocks is the number of the file's blocks.
func (f *File) Blocks() int { return Blocks(f.Size) }

// Hash returns the digest of a block, 0 to Blocks-1.
func (f *File) Hash(block int) Hash { return Hash(f.hashes[block*HashSize:]) }

// Members is the number of gzip members that hold the file.
func (f *File) Members() int { return len(f.packed) / 2 }

// Member returns where member i, 0 to Members-1, lies in the archive.
func (f *File) Member(i int) (offset int64, size int) {
	offset = f.marks[i/mark]
	for j := i - i%mark; j < i; j++ {
		offset += int64(f.size(j))
	}
	return offset, f.size(i)
}

// Content returns which part of the file member i holds, in bytes.
func (f *File) Content(i int) (offset int64, size int) {
	offset = int64(i) * int64(f.memberBlocks) * BlockSize
	return offset, int(min(int64(f.memberBlocks)*BlockSize, f.Size-offset))
}

// First returns the first block of member i. The last one's next is Blocks.
func (f *File) First(i int) int { return min(i*f.memberBlocks, f.Blocks()) }

// Check compares the blocks of member i with their digests. content is all
// that the member holds.
func (f *File) Check(i int, content []byte, h *Hasher) error {
	if _, size := f.Content(i); len(content) != size {
		return fmt.Errorf("%s: member %d has %d bytes, want %d", f.Name, i, len(content), size)
	}
	first := f.First(i)
	for n, sum := range h.All(content) {
		if sum != f.Hash(first+n) {
			return fmt.Errorf("%s: block %d has another digest than its index says", f.Name, first+n)
		}
	}
	return nil
}

// A Builder makes the index of files that are being packed.
type Builder struct {
	memberBlocks   int
	packed, hashes []byte
}

// NewBuilder returns a Builder for members of so many blocks, 1 to
// MaxMemberBlocks.
func NewBuilder(memberBlocks int) *Builder { return &Builder{memberBlocks: memberBlocks} }

// Add takes the next member's size in bytes and the digests of its blocks.
func (b *Builder) Add(packed int, hashes []Hash) error {
	if packed < 1 || packed > math.MaxUint16 {
		return fmt.Errorf("block index: gzip member of %d bytes, want 1 to %d", packed, math.MaxUint16)
	}
	b.packed = binary.LittleEndian.AppendUint16(b.packed, uint16(packed))
	for _, h := range hashes {
		b.hashes = append(b.hashes, h[:]...)
	}
	return nil
}

// Encode returns the index.
func (b *Builder) Encode() []byte {
	out := make([]byte, 0, headerSize+len(b.packed)+len(b.hashes))
	out = append(out, magic...)
	out = binary.LittleEndian.AppendUint32(out, uint32(b.memberBlocks))
	out = append(out, make([]byte, headerSize-len(out))...)
	return append(append(out, b.packed...), b.hashes...)
}
