// Package verity generates and checks dm-verity hash trees, byte for byte as
// `veritysetup format` writes them with SHA-256 and 4 KiB blocks (superblock
// version 1, hash type 1, the tree right behind the superblock).
//
// It knows this one profile and refuses every other: no other digest, block
// size or hash type, no tree without superblock, no forward error correction.
// It refuses images without a block; a partial last block is the caller's to
// round, since Params counts whole blocks. A superblock found on a disk is
// never a source of parameters: they come from what was signed.
package verity

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// The profile, in the words of the kernel's verity target
// (Documentation/admin-guide/device-mapper/verity.rst).
const (
	// BlockSize is the size in bytes of data and hash blocks.
	BlockSize = 4096
	// HashType is the on-disk format: 1, the salt goes before the block.
	HashType = 1
	// HashStartBlock is the first block of the tree on the hash device, in
	// hash blocks: the superblock takes block 0.
	HashStartBlock = 1
	// Algorithm is the digest, as the kernel names it.
	Algorithm = "sha256"
	// MaxSalt is the longest salt in bytes.
	MaxSalt = 256
	// MaxDataBlocks keeps every size and offset in bytes inside an int64.
	MaxDataBlocks = 1 << 50
)

const (
	digestSize = 32
	fanOut     = BlockSize / digestSize // digests in a hash block
)

// Root is a root hash.
type Root [digestSize]byte

// String returns the root hash in lower-case hex.
func (r Root) String() string { return hex.EncodeToString(r[:]) }

// MarshalText returns the root hash in lower-case hex.
func (r Root) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the 64 hex digits that ParseRoot takes.
func (r *Root) UnmarshalText(text []byte) error {
	root, err := ParseRoot(string(text))
	if err != nil {
		return err
	}
	*r = root
	return nil
}

// ParseRoot reads a root hash: exactly 64 hex digits, of either case.
func ParseRoot(s string) (Root, error) {
	var r Root
	if len(s) != 2*digestSize {
		return r, fmt.Errorf("parse root hash: %d characters, want %d", len(s), 2*digestSize)
	}
	if _, err := hex.Decode(r[:], []byte(s)); err != nil {
		return Root{}, fmt.Errorf("parse root hash: %w", err)
	}
	return r, nil
}

// Params is what a tree depends on besides the data.
type Params struct {
	DataBlocks uint64   // blocks of BlockSize that the tree covers, at least 1
	Salt       []byte   // hashed before every block; at most MaxSalt bytes, may be empty
	UUID       [16]byte // written to the superblock in the order of its text form
}

func (p Params) validate() error {
	if len(p.Salt) > MaxSalt {
		return fmt.Errorf("verity: salt of %d bytes, at most %d are possible", len(p.Salt), MaxSalt)
	}
	_, err := Levels(p.DataBlocks)
	return err
}

// Level is one level of a tree on the hash device.
type Level struct {
	Offset int64  // of its first block, in bytes from the start of the hash device
	Blocks uint64 // hash blocks
}

// Levels returns where the levels of a tree lie, the leaves (digests of data
// blocks) first. The levels are stored the other way round, top first. One
// data block has no level at all: its digest is the root hash.
func Levels(dataBlocks uint64) ([]Level, error) {
	if dataBlocks == 0 || dataBlocks > MaxDataBlocks {
		return nil, fmt.Errorf("verity: %d data blocks, want 1 to %d", dataBlocks, uint64(MaxDataBlocks))
	}
	var levels []Level
	for n := dataBlocks; n > 1; {
		n = (n + fanOut - 1) / fanOut
		levels = append(levels, Level{Blocks: n})
	}
	next := int64(HashStartBlock * BlockSize)
	for i := len(levels) - 1; i >= 0; i-- {
		levels[i].Offset = next
		next += int64(levels[i].Blocks) * BlockSize
	}
	return levels, nil
}

// TreeSize returns how many bytes the superblock's block and the tree take on
// the hash device.
func TreeSize(dataBlocks uint64) (int64, error) {
	levels, err := Levels(dataBlocks)
	if err != nil {
		return 0, err
	}
	blocks := uint64(HashStartBlock)
	for _, l := range levels {
		blocks += l.Blocks
	}
	return int64(blocks) * BlockSize, nil
}

const (
	magic = "verity\x00\x00"

	offVersion       = 8
	offHashType      = 12
	offUUID          = 16
	offAlgorithm     = 32
	offDataBlockSize = 64
	offHashBlockSize = 68
	offDataBlocks    = 72
	offSaltSize      = 80
	offSalt          = 88
)

// superblock returns the first block of the hash device: the superblock
// (cryptsetup wiki, "DMVerity", on-disk format) and zeros.
func (p Params) superblock() []byte {
	le := binary.LittleEndian
	b := make([]byte, BlockSize)
	copy(b, magic)
	le.PutUint32(b[offVersion:], 1)
	le.PutUint32(b[offHashType:], HashType)
	copy(b[offUUID:], p.UUID[:])
	copy(b[offAlgorithm:], Algorithm)
	le.PutUint32(b[offDataBlockSize:], BlockSize)
	le.PutUint32(b[offHashBlockSize:], BlockSize)
	le.PutUint64(b[offDataBlocks:], p.DataBlocks)
	le.PutUint16(b[offSaltSize:], uint16(len(p.Salt)))
	copy(b[offSalt:], p.Salt)
	return b
}
