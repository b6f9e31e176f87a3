// Package zstdframe tells where a zstd frame ends: in an initramfs zeros and another archive
// follow, which no decompressor gets to.
package zstdframe

import "github.com/klauspost/compress/zstd"

// Of a frame (RFC 8878, 3.1.1), in bytes.
const (
	blockHeader = 3
	checksum    = 4
)

// End is where the frame that data starts with ends. Of what is no frame, or a cut one, that
// is the end of data.
func End(data []byte) int {
	var h zstd.Header
	if h.Decode(data) != nil || h.Skippable {
		return len(data)
	}
	for at := h.HeaderSize; at+blockHeader <= len(data); {
		head := int(data[at]) | int(data[at+1])<<8 | int(data[at+2])<<16
		size := head >> 3
		if head>>1&3 == 1 { // RLE: a byte, however often it is repeated
			size = 1
		}
		at += blockHeader + size
		if head&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			at += checksum
		}
		return min(at, len(data))
	}
	return len(data)
}
