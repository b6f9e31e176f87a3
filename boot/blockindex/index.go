// Package blockindex tells which parts of a release's archive a machine lacks,
// and where they lie: the file system.index.
//
// The index has the digest of every 4 KiB block of the release's files, and
// the size of every gzip member that they are packed in. A block's digest is
// the start of the one that the image's verity tree has for it, so that a
// machine finds the blocks it has by reading the tree of its own slot, without
// hashing anything.
//
// It refuses an index that has another SHA-256 than it should, that does not
// have exactly the blocks and members that the signed release.json calls for, or
// whose member sizes do not add up to the file's. What the machine's own disk claims
// to hold is never believed: a block that is copied is hashed like one that is
// fetched, and so is the index each time that something of it is read.
//
// An index stays where it is and is read in parts, so that an update of any size
// takes the same memory.
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
