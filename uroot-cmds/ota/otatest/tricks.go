package otatest

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"
)

// Stored is a gzip member as an archive's head has them.
func Stored(plain []byte) []byte {
	stream := []byte{1}
	stream = binary.LittleEndian.AppendUint16(stream, uint16(len(plain)))
	stream = binary.LittleEndian.AppendUint16(stream, ^uint16(len(plain)))
	return member(append(stream, plain...), plain, len(plain))
}

func member(stream, plain []byte, size int) []byte {
	out := []byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x0c\x00HG\x08\x00")
	out = binary.LittleEndian.AppendUint32(out, uint32(len(stream)))
	out = binary.LittleEndian.AppendUint32(out, uint32(size))
	out = append(out, stream...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(out, uint32(size))
}

// Unhead returns the tar that the head of an archive holds.
func Unhead(head []byte) []byte {
	var tar []byte
	for len(head) > 0 {
		packed := binary.LittleEndian.Uint32(head[16:])
		stream := head[24 : 24+packed]
		for len(stream) > 0 {
			n := binary.LittleEndian.Uint16(stream[1:])
			tar = append(tar, stream[5:5+n]...)
			stream = stream[5+n:]
		}
		head = head[24+packed+8:]
	}
	return tar
}

// ChangeHeader changes a tar header and makes its checksum right.
func ChangeHeader(h []byte, change func(h []byte)) {
	change(h)
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h[:512] {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// Bomb is a gzip member with a deflate stream of size bytes that unpacks to a
// thousand times as much, and says that it holds plain bytes.
func Bomb(t testing.TB, size, plain uint32) []byte {
	t.Helper()
	var stream bytes.Buffer
	d, err := flate.NewWriter(&stream, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for stream.Len() < int(size)-200 {
		if _, err := d.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	padded := append(stream.Bytes(), make([]byte, int(size)-stream.Len())...)
	return member(padded, make([]byte, plain), int(plain))
}
