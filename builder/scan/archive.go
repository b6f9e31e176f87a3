package scan

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"

	"halogenos.internal/builder/zstdframe"
)

// kind says what a file holds beside its own bytes.
type kind uint8

const (
	nothing  kind = iota // it is not an archive
	more                 // it was unpacked, but its own bytes count too
	packed               // the same, and they are compressed
	contents             // its members are all there is
)

var (
	// errBudget ends the unpacking of a file that gets too large.
	errBudget = errors.New("unpacks to too much")
	// errUnknown is for a method of compression that is not supported.
	errUnknown = errors.New("unknown method")
)

// A decompressor reads one format of compressed files.
type decompressor struct {
	starts func(data []byte) bool
	open   func(*job, io.Reader) (io.ReadCloser, error)
}

func magic(m string) func([]byte) bool {
	return func(data []byte) bool { return len(data) >= 16 && string(data[:len(m)]) == m }
}

var decompressors = []decompressor{
	{magic("\x1f\x8b\x08"), func(_ *job, r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{magic("\xfd7zXZ\x00"), (*job).openXZ},
	{magic("\x28\xb5\x2f\xfd"), openZstd},
	{magic("BZh"), func(_ *job, r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
	{magic("\x04\x22\x4d\x18"), openLZ4},
	{magic("\x02\x21\x4c\x18"), openLZ4},
	{magic("LZIP\x01"), openLzip},
	{isZlib, func(_ *job, r io.Reader) (io.ReadCloser, error) { return zlib.NewReader(r) }},
	{isLZMA, func(_ *job, r io.Reader) (io.ReadCloser, error) { return openLZMA(bufio.NewReader(r)) }},
}

const maxDictionary = 128 << 20 // bytes

// openXZ takes a reader that another file was read with, if there is one:
// making the dictionary again for each of a kernel's thousands of modules takes
// as long as reading some.
func (j *job) openXZ(r io.Reader) (io.ReadCloser, error) {
	if z, ok := j.xz.Get().(*xz.Reader); ok {
		return &pooledXZ{z, &j.xz}, z.Reset(r)
	}
	z, err := xz.NewReader(r, maxDictionary)
	return &pooledXZ{z, &j.xz}, err
}

type pooledXZ struct {
	*xz.Reader
	pool *sync.Pool
}

func (p *pooledXZ) Close() error {
	p.pool.Put(p.Reader)
	return nil
}

func openZstd(_ *job, r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func openLZ4(_ *job, r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReader(r)
	if head, _ := b.Peek(5); len(head) == 5 && head[0] == 4 && head[4]&1 != 0 {
		return nil, errUnknown // a dictionary that lies elsewhere
	}
	return io.NopCloser(lz4.NewReader(b)), nil
}

// openLzip reads lzip(1): the name, the version and the size of the dictionary,
// then LZMA with fixed properties and a mark at its end.
func openLzip(_ *job, r io.Reader) (io.ReadCloser, error) {
	var head [6]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := uint32(1) << (head[5] & 31)
	size -= size / 16 * uint32(head[5]>>5)
	start := append(binary.LittleEndian.AppendUint32([]byte{0x5d}, size), bytes.Repeat([]byte{0xff}, 8)...)
	return openLZMA(bufio.NewReader(io.MultiReader(bytes.NewReader(start), r)))
}

// openLZMA reads LZMA whose dictionary fits into memory.
func openLZMA(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(5)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(head[1:]) > maxDictionary {
		return nil, errUnknown
	}
	z, err := lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(r)
	return io.NopCloser(z), err
}

func isZlib(data []byte) bool {
	return len(data) >= 16 && data[0] == 0x78 && binary.BigEndian.Uint16(data)%31 == 0 && data[1]&0x20 == 0
}

// isLZMA knows a file of lzma(1), which has nothing fixed, by what xz(1) asks
// of it: properties, a dictionary of 2^n or 2^n + 2^(n-1) bytes, a sensible size.
func isLZMA(data []byte) bool {
	if len(data) < 18 || data[0] >= 225 || data[13] != 0 {
		return false
	}
	d, size := binary.LittleEndian.Uint32(data[1:]), binary.LittleEndian.Uint64(data[5:])
	top := d &^ (d >> 1)
	return d >= 1<<12 && d <= 1<<30 && (d&(d-1) == 0 || d == top|top>>1) && (size == 1<<64-1 || size < 1<<38)
}

// opaque are formats that cannot be looked into, by how a file starts: other
// archives, what is encrypted as a whole, and compressed disks.
var opaque = []string{
	"Rar!\x1a\x07", "MSCF\x00\x00\x00\x00", "\x89LZO\x00\x0d\x0a\x1a\x0a", "LRZI\x00", "xar!\x00\x1c", "QFI\xfb\x00\x00\x00", "KDMV\x01\x00\x00\x00", "vhdxfile",
	"age-encryption.org/v1\n", "-----BEGIN AGE ENCRYPTED FILE-----", "-----BEGIN PGP MESSAGE-----", "Salted__",
}

// isOpaque also knows EROFS, whose name is not at the start.
func isOpaque(data []byte) bool {
	for _, m := range opaque {
		if len(data) > 32 && bytes.HasPrefix(data, []byte(m)) {
			return true
		}
	}
	return len(data) >= 2048 && string(data[1024:1028]) == "\xe2\xe1\xf5\xe0" || isCompress(data)
}

// isCompress knows a file of compress(1): after the head of three bytes, which
// chance makes too often, the first codes of nine bits stand for a byte or for
// one of the strings before.
func isCompress(data []byte) bool {
	if len(data) < 32 || data[0] != 0x1f || data[1] != 0x9d || data[2]&0x60 != 0 || data[2]&0x1f < 9 || data[2]&0x1f > 16 {
		return false
	}
	for i := range 24 {
		at := 3 + i*9/8
		code := int(binary.LittleEndian.Uint16(data[at:])) >> (i % 8) & 0x1ff
		if code > 256+i || i == 0 && code > 255 {
			return false
		}
	}
	return true
}

// archive unpacks what it knows and searches the members.
func (j *job) archive(name string, data []byte, depth int) (kind, error) {
	data = skipFrames(data)
	for _, d := range decompressors {
		if d.starts(data) {
			if j.deep(name, depth) {
				return packed, nil
			}
			found, err := j.compressed(name, data, depth, d.open)
			// Another archive follows in an initramfs, with zeros before it or without.
			if end := zstdframe.End(data); err == nil && end < len(data) {
				if rest := bytes.TrimLeft(data[end:], "\x00"); len(rest) > 0 {
					_, err = j.archive(name, rest, depth+1)
				}
			}
			return found, err
		}
	}
	switch {
	case isTar(data), isCPIO(data), isOldCPIO(data), bytes.HasPrefix(data, []byte("!<arch>\n")):
		if j.deep(name, depth) {
			return more, nil
		}
		return contents, j.stream(name, bufio.NewReader(bytes.NewReader(data)), depth)
	case bytes.Contains(data[max(0, len(data)-1<<16-22):], []byte("PK\x05\x06")):
		if j.deep(name, depth) {
			return more, nil
		}
		return more, j.zip(name, data, depth)
	case bytes.HasPrefix(data, []byte("MZ")):
		return more, j.efi(name, data, depth)
	case bytes.HasPrefix(data, []byte("7z\xbc\xaf\x27\x1c")):
		if j.deep(name, depth) {
			return more, nil
		}
		return more, j.sevenZip(name, data, depth)
	case bytes.HasPrefix(data, []byte("hsqs")):
		if j.deep(name, depth) {
			return more, nil
		}
		return more, j.squashFS(name, data, depth)
	case bytes.HasPrefix(data, []byte("\x7fELF")):
		if tail := elfTail(data); len(tail) >= 16 && tail[0] != 0x7f && !j.deep(name, depth) {
			_, err := j.archive(name, tail, depth+1)
			return nothing, err
		}
	case isOpaque(data):
		j.found(name, ruleUnsearched, 0)
	}
	return nothing, nil
}

// deep reports that archives are nested too deep.
func (j *job) deep(name string, depth int) bool {
	if depth >= maxDepth {
		j.found(name, ruleUnsearched, 0)
	}
	return depth >= maxDepth
}

// skipFrames skips the frames of zstd and LZ4 that are for others to read.
func skipFrames(data []byte) []byte {
	for len(data) > 8 && data[0]&0xf0 == 0x50 && string(data[1:4]) == "\x2a\x4d\x18" {
		size := binary.LittleEndian.Uint32(data[4:])
		if uint64(size) > uint64(len(data)-8) {
			break
		}
		data = data[8+size:]
	}
	return data
}

// inside returns the name of a member.
func inside(archive, member string) string {
	return archive + "!/" + strings.TrimLeft(path.Clean("/"+member), "/")
}

// compressed searches what a compressed file unpacks to. Bytes behind it are
// searched as a file of their own: an initramfs is several archives in a row.
func (j *job) compressed(name string, data []byte, depth int, open func(*job, io.Reader) (io.ReadCloser, error)) (kind, error) {
	z, err := open(j, bytes.NewReader(data))
	if err != nil {
		if notSupported(err) {
			j.found(name, ruleUnsearched, 0)
		}
		return nothing, nil // it only starts like one
	}
	defer z.Close()
	m := &metered{r: z, left: &j.budget}
	r := bufio.NewReaderSize(m, 64<<10)
	head, err := r.Peek(512)
	if err != nil && len(head) == 0 {
		if notSupported(err) {
			j.found(name, ruleUnsearched, 0)
		}
		return nothing, nil
	}
	if isTar(head) || isCPIO(head) {
		err = j.stream(name, r, depth)
	} else {
		err = j.content(name, r, depth)
	}
	if notSupported(m.err) {
		j.found(name, ruleUnsearched, 0)
	}
	return packed, err
}

// notSupported tells what this program cannot unpack from damage, which nobody
// can.
func notSupported(err error) bool {
	for _, known := range []error{
		errUnknown, xz.ErrMemlimit, xz.ErrOptions, xz.ErrUnsupportedCheck,
		zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded, zstd.ErrUnknownDictionary, lz4.ErrOptionInvalidBlockSize,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// content searches what one compressed file is, and hands over a module.
func (j *job) content(name string, r io.Reader, depth int) error {
	return j.hold(name, r, func(content []byte) error {
		if depth == 0 && j.Unpacked != nil && module(name) && path.Ext(name) != ".ko" {
			j.handed = true
			var err error
			if j.note, err = j.Unpacked(name, content); err != nil {
				return err
			}
		}
		return j.object(name, content, depth+1)
	})
}

// module reports whether a name is one of a kernel module.
func module(name string) bool {
	switch path.Ext(name) {
	case ".ko":
		return true
	case ".gz", ".xz", ".zst":
		return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), ".ko")
	}
	return false
}

// metered counts what is unpacked, and keeps the error that ended it.
type metered struct {
	r    io.Reader
	left *int64
	err  error
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if *m.left -= int64(n); *m.left < 0 {
		err = errBudget
	}
	m.err = err
	return n, err
}

// member searches a member of an archive.
func (j *job) member(name string, r io.Reader, depth int) error {
	return j.hold(name, r, func(content []byte) error { return j.object(name, content, depth+1) })
}

// hold reads what is unpacked into memory, up to the limits, and hands it over;
// what was read before an error is handed over, too.
func (j *job) hold(name string, r io.Reader, do func([]byte) error) error {
	limit := min(maxMember, maxHeld-j.held)
	content, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if len(content) > limit || errors.Is(err, errBudget) {
		j.found(name, ruleUnsearched, 0)
		content = content[:min(len(content), limit)]
	}
	j.held += len(content)
	defer func() { j.held -= len(content) }()
	return do(content)
}
