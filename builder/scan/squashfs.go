package scan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// squash is a SquashFS 4.0 file system (Linux,
// Documentation/filesystems/squashfs.rst). Its inodes are read one after the
// other, and not from the root on: what has no name is in the image as well.
type squash struct {
	job       *job
	data      []byte
	method    uint16
	blockSize int
	names     map[uint32]string // by inode
	fragments [][2]uint64       // place and size of blocks of ends of files
	last      []byte            // the fragment block that was read last
	lastIndex uint32
}

const (
	squashMetadata   = 8 << 10 // bytes of a block of tables
	squashRaw        = 1 << 15 // a block of a table that is not compressed
	squashRawData    = 1 << 24 // one of data
	squashNoFragment = 1<<32 - 1
	maxSquashTable   = 128 << 20 // bytes
)

var errSquash = errors.New("damaged SquashFS")

// squashFS searches the tables of a SquashFS, in which are the names, the
// targets of links and the extended attributes, and then the files. What cannot
// be read is named.
func (j *job) squashFS(name string, data []byte, depth int) error {
	s := &squash{job: j, data: data, names: make(map[uint32]string)}
	tables, err := s.open()
	if err != nil {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	defer func(held int) { j.held = held }(j.held)
	for _, t := range tables {
		j.held += len(t.content)
		if err := j.search(name+"#"+t.name, t.content, depth+1, false); err != nil {
			return err
		}
	}
	s.readNames(tables[1].content)
	return s.files(name, tables[0].content, depth)
}

type squashTable struct {
	name    string
	content []byte
}

// open reads the superblock and the tables: inodes, directories, attributes.
func (s *squash) open() ([]squashTable, error) {
	if len(s.data) < 96 || binary.LittleEndian.Uint16(s.data[28:]) != 4 {
		return nil, errSquash
	}
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(s.data[at:]) }
	s.blockSize = int(binary.LittleEndian.Uint32(s.data[12:]))
	s.method = binary.LittleEndian.Uint16(s.data[20:])
	fragments := int(binary.LittleEndian.Uint32(s.data[16:]))
	if s.blockSize < 4096 || s.blockSize > 1<<20 || s.method == 0 || s.method == 3 || s.method > 6 {
		return nil, fmt.Errorf("%w, or compressed with LZO", errSquash)
	}
	attributes, inodes, directories, lookup := word(56), word(64), word(72), word(80)
	table, err := s.table(inodes, directories)
	if err != nil {
		return nil, err
	}
	tables := []squashTable{{"inodes", table}}
	end := lookup
	if fragments == 0 {
		// Then what follows is the table of exports or of owners, whose place
		// only tells that no directory is behind it.
		end = uint64(len(s.data))
	}
	if table, err = s.table(directories, end); err != nil && len(table) == 0 {
		return nil, err
	}
	tables = append(tables, squashTable{"directories", table})
	if attributes != 1<<64-1 {
		if attributes > uint64(len(s.data)) || len(s.data)-int(attributes) < 16 {
			return nil, errSquash
		}
		if table, err = s.table(word(int(attributes)), attributes); err != nil && len(table) == 0 {
			return nil, err
		}
		tables = append(tables, squashTable{"attributes", table})
	}
	return tables, s.readFragments(lookup, fragments)
}

// table reads the blocks of a table from one place to another.
func (s *squash) table(at, end uint64) ([]byte, error) {
	var table []byte
	if at > end || end > uint64(len(s.data)) {
		return nil, errSquash
	}
	for at < end {
		block, size, err := s.metadata(at)
		if err != nil {
			return table, err
		}
		if table = append(table, block...); len(table) > maxSquashTable {
			return nil, errBudget
		}
		at += size
	}
	return table, nil
}

// metadata reads a block of a table, and how many bytes it takes.
func (s *squash) metadata(at uint64) (block []byte, size uint64, err error) {
	if at > uint64(len(s.data)) || len(s.data)-int(at) < 2 {
		return nil, 0, errSquash
	}
	header := binary.LittleEndian.Uint16(s.data[at:])
	n := int(header &^ squashRaw)
	if n == 0 || n > squashMetadata || n > len(s.data)-int(at)-2 {
		return nil, 0, errSquash
	}
	block, err = s.unpack(s.data[at+2:at+2+uint64(n)], header&squashRaw != 0, squashMetadata)
	return block, uint64(n) + 2, err
}

// unpack decompresses a block, which is no longer than limit.
func (s *squash) unpack(block []byte, raw bool, limit int) ([]byte, error) {
	if raw {
		return block, nil
	}
	var r io.Reader
	var err error
	switch s.method {
	case 1:
		r, err = zlib.NewReader(bytes.NewReader(block))
	case 2:
		r, err = lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(bytes.NewReader(block))
	case 4:
		var x io.ReadCloser
		if x, err = s.job.openXZ(bytes.NewReader(block)); err == nil {
			defer x.Close()
			r = x
		}
	case 5:
		out := make([]byte, limit)
		n, err := lz4.UncompressBlock(block, out)
		return out[:max(n, 0)], err
	case 6:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(block), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary)); err == nil {
			defer z.Close()
			r = z
		}
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(&metered{r: r, left: &s.job.budget}, int64(limit)))
}

// readFragments reads where the ends of files lie.
func (s *squash) readFragments(lookup uint64, count int) error {
	if count > len(s.data)/16+512 { // 16 bytes each, compressed
		return errSquash
	}
	for len(s.fragments) < count {
		if lookup > uint64(len(s.data)) || len(s.data)-int(lookup) < 8 {
			return errSquash
		}
		block, _, err := s.metadata(binary.LittleEndian.Uint64(s.data[lookup:]))
		if err != nil || len(block) < 16 {
			return errSquash
		}
		for ; len(block) >= 16 && len(s.fragments) < count; block = block[16:] {
			s.fragments = append(s.fragments, [2]uint64{binary.LittleEndian.Uint64(block), uint64(binary.LittleEndian.Uint32(block[8:]))})
		}
		lookup += 8
	}
	return nil
}

// readNames notes the names of inodes, each without its directory's.
func (s *squash) readNames(table []byte) {
	for len(table) >= 12 {
		count, first := binary.LittleEndian.Uint32(table), binary.LittleEndian.Uint32(table[8:])
		if count > 255 {
			return
		}
		table = table[12:]
		for range count + 1 {
			if len(table) < 8 {
				return
			}
			inode := first + uint32(int32(int16(binary.LittleEndian.Uint16(table[2:]))))
			n := int(binary.LittleEndian.Uint16(table[6:])) + 1
			if n > len(table)-8 {
				return
			}
			s.names[inode] = string(table[8 : 8+n])
			table = table[8+n:]
		}
	}
}

// files searches the regular files of the table of inodes.
func (s *squash) files(name string, t []byte, depth int) error {
	for len(t) >= 16 {
		kind, inode := binary.LittleEndian.Uint16(t), binary.LittleEndian.Uint32(t[12:])
		f, size, err := s.inode(kind, t)
		if err != nil || size > len(t) {
			s.job.found(name, ruleUnsearched, 0)
			return nil
		}
		t = t[size:]
		if f == nil {
			continue
		}
		at := inside(name, s.names[inode])
		if err := s.job.member(at, f, depth); err != nil {
			return err
		}
		if f.err != nil {
			s.job.found(at, ruleUnsearched, 0)
		}
	}
	return nil
}

// inode returns the file that an inode is, nil for another kind, and its size
// in bytes.
func (s *squash) inode(kind uint16, t []byte) (*squashFile, int, error) {
	fixed := map[uint16]int{1: 32, 2: 32, 3: 24, 4: 24, 5: 24, 6: 20, 7: 20, 8: 40, 9: 56, 10: 24, 11: 28, 12: 28, 13: 24, 14: 24}[kind]
	if fixed == 0 || len(t) < fixed {
		return nil, 0, errSquash
	}
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(t[at:]) }
	switch kind {
	case 2:
		f := &squashFile{squash: s, at: uint64(word(16)), fragment: word(20), offset: word(24), left: uint64(word(28))}
		return f.blocks(t, fixed)
	case 9:
		f := &squashFile{squash: s, at: binary.LittleEndian.Uint64(t[16:]), left: binary.LittleEndian.Uint64(t[24:]), fragment: word(44), offset: word(48)}
		return f.blocks(t, fixed)
	case 3:
		return nil, fixed + int(word(20)), nil
	case 10:
		return nil, fixed + int(word(20)) + 4, nil
	case 8: // with an index of its names
		size := fixed
		for range binary.LittleEndian.Uint16(t[32:]) {
			if len(t) < size+12 {
				return nil, 0, errSquash
			}
			size += 12 + int(word(size+8)) + 1
		}
		return nil, size, nil
	}
	return nil, fixed, nil
}

// A squashFile reads the content of a file.
type squashFile struct {
	*squash
	at       uint64   // of the next block
	sizes    []uint32 // of the blocks that are left
	left     uint64   // bytes
	fragment uint32
	offset   uint32 // of its end in the fragment
	block    []byte
	err      error // why it cannot be read
}

// blocks notes the sizes of the blocks, which follow the inode.
func (f *squashFile) blocks(t []byte, fixed int) (*squashFile, int, error) {
	count := f.left / uint64(f.blockSize)
	if f.fragment == squashNoFragment && f.left%uint64(f.blockSize) != 0 {
		count++
	}
	if count > uint64(len(t)-fixed)/4 {
		return nil, 0, errSquash
	}
	for i := range int(count) {
		f.sizes = append(f.sizes, binary.LittleEndian.Uint32(t[fixed+4*i:]))
	}
	return f, fixed + 4*int(count), nil
}

func (f *squashFile) Read(p []byte) (int, error) {
	if len(f.block) == 0 {
		if f.left == 0 || f.err != nil {
			return 0, io.EOF
		}
		if f.err = f.next(); f.err != nil || len(f.block) == 0 {
			f.err = errors.Join(f.err, io.ErrUnexpectedEOF)
			return 0, f.err
		}
		f.left -= uint64(len(f.block))
	}
	n := copy(p, f.block)
	f.block = f.block[n:]
	return n, nil
}

// next reads a block, or the end of the file from a fragment.
func (f *squashFile) next() error {
	want := int(min(f.left, uint64(f.blockSize)))
	if len(f.sizes) == 0 {
		return f.end(want)
	}
	size := f.sizes[0] &^ squashRawData
	raw := f.sizes[0]&squashRawData != 0
	f.sizes = f.sizes[1:]
	if size == 0 { // a hole
		f.block = make([]byte, want)
		f.job.budget -= int64(want)
		return f.job.ctx.Err()
	}
	if f.at > uint64(len(f.data)) || uint64(size) > uint64(len(f.data))-f.at {
		return errSquash
	}
	block, err := f.unpack(f.data[f.at:f.at+uint64(size)], raw, f.blockSize)
	f.at += uint64(size)
	f.block = block[:min(len(block), want)]
	return err
}

func (f *squashFile) end(want int) error {
	if uint64(f.fragment) >= uint64(len(f.fragments)) {
		return errSquash
	}
	if f.last == nil || f.lastIndex != f.fragment {
		at, size := f.fragments[f.fragment][0], f.fragments[f.fragment][1]
		n := size &^ squashRawData
		if at > uint64(len(f.data)) || n > uint64(len(f.data))-at {
			return errSquash
		}
		block, err := f.unpack(f.data[at:at+n], size&squashRawData != 0, f.blockSize)
		if err != nil {
			return err
		}
		f.last, f.lastIndex = block, f.fragment
	}
	if uint64(f.offset)+uint64(want) > uint64(len(f.last)) {
		return errSquash
	}
	f.block = f.last[f.offset : int(f.offset)+want]
	return nil
}
