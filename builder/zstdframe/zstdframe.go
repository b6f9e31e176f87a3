// Package zstdframe tells where a zstd frame ends: in an initramfs zeros and another archive
// follow, which no decompressor gets to.
package zstdframe

import (
	"bytes"

	"github.com/klauspost/compress/zstd"
)

// Of a frame (RFC 8878, 3.1.1), in bytes.
const (
	blockHeader = 3
	checksum    = 4
)

// How frames start (RFC 8878, 3.1.1 and 3.1.2); before skipped is a byte of 50 to 5f.
var magic, skipped = []byte("\x28\xb5\x2f\xfd"), []byte("\x2a\x4d\x18")

// End is where the frames end that data starts with, one right after the other, as a
// decompressor reads them. Of what is not a frame, or a cut one, that is the end of data.
func End(data []byte) int {
	at := 0
	for at < len(data) {
		size := frame(data[at:])
		if size == 0 {
			break
		}
		at += size
	}
	if at == 0 {
		return len(data)
	}
	return at
}

// frame is the size of the frame that data starts with, one that is skipped included; 0 where
// it starts with none.
func frame(data []byte) int {
	if len(data) < 4 || !bytes.Equal(data[:4], magic) && (data[0]&0xf0 != 0x50 || !bytes.Equal(data[1:4], skipped)) {
		return 0
	}
	var h zstd.Header
	if h.Decode(data) != nil {
		return len(data)
	}
	if h.Skippable {
		return int(min(int64(h.HeaderSize)+int64(h.SkippableSize), int64(len(data))))
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
