// Package microcodetest makes containers of microcode for tests. No processor takes it.
package microcodetest

import (
	"encoding/binary"
	"math/rand/v2"

	"halogenos.internal/boot/microcode"
)

var le = binary.LittleEndian

// Intel returns an update of 2048 bytes, or of 3072 where it is for more processors than
// the first. Their revisions are the first one's.
func Intel(first microcode.Processor, more ...microcode.Processor) []byte {
	const header, data, table = 48, 2000, 20
	out := make([]byte, header+data)
	if len(more) > 0 {
		out = make([]byte, 3072)
	}
	size := len(out) - header
	if len(more) > 0 {
		size -= table + 12*len(more)
	}
	for i, n := range []uint32{1, first.Revision, 0x01022026, first.Signature, 0, 1, first.Platforms, uint32(size), uint32(len(out))} {
		le.PutUint32(out[4*i:], n)
	}
	le.PutUint32(out[16:], -sum(out[:header+size]))
	if len(more) > 0 {
		extended := out[header+size:]
		le.PutUint32(extended, uint32(len(more)))
		for i, p := range more {
			entry := extended[table+12*i:]
			le.PutUint32(entry, p.Signature)
			le.PutUint32(entry[4:], p.Platforms)
			le.PutUint32(entry[8:], first.Signature+first.Platforms+le.Uint32(out[16:])-p.Signature-p.Platforms)
		}
		le.PutUint32(extended[4:], -sum(extended))
	}
	return out
}

// Encrypted fills an update of Intel's, for one processor, with what looks like chance, as
// the real ones are.
func Encrypted(update []byte) []byte {
	const checksum, header = 16, 48
	random := rand.New(rand.NewPCG(1, 2))
	for i := header; i < len(update); i++ {
		update[i] = byte(random.Uint32())
	}
	le.PutUint32(update[checksum:], 0)
	le.PutUint32(update[checksum:], -sum(update))
	return update
}

func sum(b []byte) (s uint32) {
	for ; len(b) > 0; b = b[4:] {
		s += le.Uint32(b)
	}
	return s
}

// AMD returns a container with a patch for each processor.
func AMD(all ...microcode.Processor) []byte {
	out := le.AppendUint32([]byte("DMA\x00\x00\x00\x00\x00"), uint32(16*(len(all)+1)))
	for i, p := range all {
		entry := make([]byte, 16)
		le.PutUint32(entry, p.Signature)
		le.PutUint16(entry[12:], uint16(0x1000+i))
		out = append(out, entry...)
	}
	out = append(out, make([]byte, 16)...)
	for i, p := range all {
		patch := make([]byte, 8+96)
		le.PutUint32(patch, 1)
		le.PutUint32(patch[4:], 96)
		le.PutUint32(patch[8+4:], p.Revision)
		le.PutUint16(patch[8+24:], uint16(0x1000+i))
		out = append(out, patch...)
	}
	return out
}
