// Package sha256pair computes the SHA-256 of many blocks of one size, each
// behind the same salt, as a verity tree wants it. On processors with the SHA
// extensions it works on two blocks at once: one block's rounds wait for each
// other, and two blocks' rounds do not.
//
// It refuses no block and has no result of its own: every digest is the one
// that crypto/sha256 computes, and on other processors crypto/sha256 does.
package sha256pair

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// A Hasher computes digests of salt and block. It belongs to one goroutine.
type Hasher struct {
	size int // of a block, in bytes
	salt []byte
	one  hash.Hash
	// The two messages: salt, block, and the padding of FIPS 180-4, section
	// 5.1.1, of which only the block ever changes. Empty without the extensions.
	messages [2][]byte
	// Between these offsets of the message there is nothing but the block, which is
	// hashed where it lies.
	from, to int
}

// New returns a hasher of blocks of size bytes behind a salt.
func New(salt []byte, size int) *Hasher {
	h := &Hasher{size: size, salt: salt, one: sha256.New()}
	if !accelerated {
		return h
	}
	const length = 8 // bytes of the message's length in bits, at its end
	used := len(salt) + size
	for i := range h.messages {
		m := make([]byte, (used+1+length+sha256.BlockSize-1)/sha256.BlockSize*sha256.BlockSize)
		copy(m, salt)
		m[used] = 0x80
		binary.BigEndian.PutUint64(m[len(m)-length:], uint64(used)*8)
		h.messages[i] = m
	}
	const piece = sha256.BlockSize
	h.from, h.to = (len(salt)+piece-1)/piece*piece, used/piece*piece
	if h.from >= h.to {
		h.from, h.to = len(h.messages[0]), len(h.messages[0])
	}
	return h
}

// Sum writes the digest of the salt and one block to dst.
func (h *Hasher) Sum(dst *[sha256.Size]byte, block []byte) {
	h.one.Reset()
	h.one.Write(h.salt)
	h.one.Write(block)
	h.one.Sum(dst[:0])
}

// SumAll writes the digests of all blocks, one behind the other, to dst. blocks
// is a whole number of them, and dst has room.
func (h *Hasher) SumAll(dst, blocks []byte) {
	for h.messages[0] != nil && len(blocks) >= 2*h.size {
		h.sumTwo((*[2 * sha256.Size]byte)(dst), blocks[:h.size], blocks[h.size:2*h.size])
		dst, blocks = dst[2*sha256.Size:], blocks[2*h.size:]
	}
	for len(blocks) > 0 {
		h.Sum((*[sha256.Size]byte)(dst), blocks[:h.size])
		dst, blocks = dst[sha256.Size:], blocks[h.size:]
	}
}

// initial is the initial hash value (FIPS 180-4, section 5.3.3).
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

func (h *Hasher) sumTwo(dst *[2 * sha256.Size]byte, a, b []byte) {
	one, two := h.messages[0], h.messages[1]
	start := len(h.salt)
	copy(one[start:h.from], a)
	copy(two[start:h.from], b)
	state := [2][8]uint32{initial, initial}
	compressAll(&state, one[:h.from], two[:h.from])
	if h.to < len(one) {
		compressAll(&state, a[h.from-start:h.to-start], b[h.from-start:h.to-start])
		copy(one[h.to:], a[h.to-start:])
		copy(two[h.to:], b[h.to-start:])
		compressAll(&state, one[h.to:], two[h.to:])
	}
	for i, words := range state {
		for j, w := range words {
			binary.BigEndian.PutUint32(dst[i*sha256.Size+4*j:], w)
		}
	}
}

// compressAll takes whole message blocks, as many of one as of the other.
func compressAll(state *[2][8]uint32, a, b []byte) {
	if len(a) > 0 {
		compressTwo(state, &a[0], &b[0], len(a)/sha256.BlockSize)
	}
}
