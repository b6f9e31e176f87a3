package scan

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"debug/pe"
	"encoding/binary"
	"errors"
	"io"

	"github.com/bodgit/sevenzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	"halogenos.internal/builder/vmlinux"
)

// zip searches the members of a zip archive, before which there may be a
// program.
func (j *job) zip(name string, data []byte, depth int) error {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil // it only ends like one
	}
	// Beside what the library knows (APPNOTE.TXT, section 4.4.5).
	z.RegisterDecompressor(12, func(r io.Reader) io.ReadCloser { return io.NopCloser(bzip2.NewReader(r)) })
	z.RegisterDecompressor(14, zipLZMA)
	z.RegisterDecompressor(93, zstd.ZipDecompressor(zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary)))
	z.RegisterDecompressor(95, func(r io.Reader) io.ReadCloser {
		x, err := j.openXZ(r)
		if err != nil {
			return io.NopCloser(failed{err})
		}
		return x
	})
	for _, f := range z.File {
		at := inside(name, f.Name)
		j.match(at, []byte(f.Name), depth)
		r, err := f.Open()
		if f.Flags&1 != 0 || err != nil {
			j.found(at, ruleUnsearched, 0) // encrypted, or compressed in a way that is not known
			if err == nil {
				r.Close()
			}
			continue
		}
		err = j.member(at, &metered{r: r, left: &j.budget}, depth)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// failed is a reader that cannot read.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

// zipLZMA reads LZMA as zip has it: version, length of the properties, these.
func zipLZMA(r io.Reader) io.ReadCloser {
	header := make([]byte, 9)
	if _, err := io.ReadFull(r, header); err != nil {
		return io.NopCloser(failed{err})
	}
	if binary.LittleEndian.Uint16(header[2:]) != 5 {
		return io.NopCloser(failed{errUnknown})
	}
	// The length is in the archive's directory: here it is not known.
	start := append(header[4:9:9], bytes.Repeat([]byte{0xff}, 8)...)
	z, err := openLZMA(bufio.NewReader(io.MultiReader(bytes.NewReader(start), r)))
	if err != nil {
		return io.NopCloser(failed{err})
	}
	return z
}

func init() {
	// The library gives a dictionary all the memory that an archive asks for.
	bounded := func(size func(properties []byte) uint64, open func([]byte, uint64, io.Reader) (io.Reader, error)) sevenzip.Decompressor {
		return func(properties []byte, length uint64, from []io.ReadCloser) (io.ReadCloser, error) {
			if len(from) != 1 || size(properties) > maxDictionary {
				return nil, errUnknown
			}
			r, err := open(properties, length, bufio.NewReader(from[0]))
			return io.NopCloser(r), err
		}
	}
	word := func(p []byte) uint64 {
		if len(p) != 5 {
			return 1 << 40
		}
		return uint64(binary.LittleEndian.Uint32(p[1:]))
	}
	sevenzip.RegisterDecompressor([]byte{3, 1, 1}, bounded(word, func(p []byte, length uint64, r io.Reader) (io.Reader, error) {
		header := binary.LittleEndian.AppendUint64(p[:5:5], length)
		return lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(header), r)))
	}))
	two := func(p []byte) uint64 {
		if len(p) != 1 || p[0] > 40 {
			return 1 << 40
		}
		return uint64(2|p[0]&1) << (p[0]/2 + 11)
	}
	sevenzip.RegisterDecompressor([]byte{0x21}, bounded(two, func(p []byte, _ uint64, r io.Reader) (io.Reader, error) {
		return lzma.Reader2Config{DictCap: int(max(two(p), lzma.MinDictCap))}.NewReader2(r)
	}))
	// PPMd also takes what it is told to; nobody's default has it.
	unknown := func([]byte, uint64, []io.ReadCloser) (io.ReadCloser, error) { return nil, errUnknown }
	sevenzip.RegisterDecompressor([]byte{3, 4, 1}, unknown)
	// What is encrypted would be read by the empty password, and what comes of that can be a
	// whole stream of LZMA2 that holds nothing: one in 256 begins with the byte of its end.
	sevenzip.RegisterDecompressor([]byte{6, 0xf1, 7, 1}, unknown)
}

// sevenZip searches the members of a 7z archive. What the library cannot read
// is named: a password, a method that is not known, damage.
func (j *job) sevenZip(name string, data []byte, depth int) (err error) {
	defer func() {
		if r := recover(); r != nil { // the library trusts lengths
			j.found(name, ruleUnsearched, 0)
		}
	}()
	z, err := sevenzip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	for _, f := range z.File {
		at := inside(name, f.Name)
		j.match(at, []byte(f.Name), depth)
		if f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			j.found(at, ruleUnsearched, 0)
			continue
		}
		m := &metered{r: r, left: &j.budget}
		err = j.member(at, m, depth)
		r.Close()
		if m.err != nil && !errors.Is(m.err, io.EOF) {
			j.found(at, ruleUnsearched, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// efi searches what is packed in a kernel, and in the sections of a UKI.
func (j *job) efi(name string, data []byte, depth int) error {
	if depth >= maxDepth {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	if kernel, err := vmlinux.Unpack(data); err == nil {
		j.budget -= int64(len(kernel))
		return j.object(name+"!/vmlinux", kernel, depth+1)
	}
	f, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	for _, s := range f.Sections {
		from, to := int64(s.Offset), int64(s.Offset)+int64(s.Size)
		if s.Name != ".linux" && s.Name != ".initrd" || to > int64(len(data)) {
			continue
		}
		if err := j.object(name+"!/"+s.Name, data[from:to], depth+1); err != nil {
			return err
		}
	}
	return nil
}

// elfTail returns what stands behind a program: an AppImage has its file system
// there. It returns nothing where the headers say nothing.
func elfTail(data []byte) []byte {
	if len(data) < 64 || data[4] != 2 || data[5] != 1 {
		return nil
	}
	table := binary.LittleEndian.Uint64(data[40:])
	size := uint64(binary.LittleEndian.Uint16(data[58:])) * uint64(binary.LittleEndian.Uint16(data[60:]))
	if table == 0 || table > uint64(len(data)) || size > uint64(len(data))-table {
		return nil
	}
	return data[table+size:]
}
