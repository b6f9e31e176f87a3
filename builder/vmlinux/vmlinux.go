// Package vmlinux takes the kernel proper out of a bzImage.
//
// It refuses an image that is not a bzImage, that does not hold what its header
// says, or that is packed in a way nobody uses for x86 any more (lzo).
package vmlinux

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

const (
	maxKernel     = 1 << 30   // bytes of an unpacked kernel
	maxDictionary = 128 << 20 // bytes
)

// formats of the packed kernel by how it starts (Linux,
// scripts/Makefile.lib; lib/decompress.c).
var formats = []struct {
	magic string
	open  func(io.Reader) (io.Reader, error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"\x5d\x00\x00", func(r io.Reader) (io.Reader, error) {
		return lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(r)
	}},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, maxDictionary) }},
	{"\x02\x21\x4c\x18", func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}},
}

// Unpack returns the ELF file in a bzImage (Linux,
// Documentation/arch/x86/boot.rst, payload_offset and payload_length).
func Unpack(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x206:]) < 0x208 {
		return nil, errors.New("unpack kernel: it is not a bzImage that tells where its kernel lies")
	}
	setup := uint64(image[0x1f1])
	if setup == 0 {
		setup = 4
	}
	from := (setup+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	size := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if size < 16 || from+size > uint64(len(image)) {
		return nil, fmt.Errorf("unpack kernel: %d bytes at %d are not in the image of %d", size, from, len(image))
	}
	packed := image[from : from+size]
	for _, f := range formats {
		if !bytes.HasPrefix(packed, []byte(f.magic)) {
			continue
		}
		kernel, err := unpack(packed, f.open)
		if err != nil {
			return nil, fmt.Errorf("unpack kernel: %w", err)
		}
		return kernel, nil
	}
	return nil, fmt.Errorf("unpack kernel: packed in a way that is not known: it starts with %x", packed[:6])
}

// unpack reads as many bytes as the packed kernel says at its end that there
// are. Behind the stream the kernel's build leaves just this number.
func unpack(packed []byte, open func(io.Reader) (io.Reader, error)) ([]byte, error) {
	size := binary.LittleEndian.Uint32(packed[len(packed)-4:])
	if size == 0 || size > maxKernel {
		return nil, fmt.Errorf("it says that it has %d bytes", size)
	}
	r, err := open(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	var kernel bytes.Buffer
	if _, err := io.CopyN(&kernel, r, int64(size)); err != nil {
		return nil, fmt.Errorf("%d bytes of %d: %w", kernel.Len(), size, err)
	}
	if !bytes.HasPrefix(kernel.Bytes(), []byte("\x7fELF")) {
		return nil, errors.New("it is not an ELF file")
	}
	return kernel.Bytes(), nil
}
