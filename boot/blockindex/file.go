package blockindex

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
)

// An Index describes the files of a release. It is not changed after Open, and
// many goroutines may use it.
type Index struct {
	r            *io.SectionReader
	memberBlocks int
	partBlocks   int
	files        []*File
}

// A File is one file in an index.
type File struct {
	Place
	index            *Index
	packedAt, hashAt int64 // in the index
	runs             []run
}

// A run is what is kept of a part that is not in memory.
type run struct {
	offset         int64 // of its first member in the archive
	packed, hashes [sha256.Size]byte
}

// UsualPart is how many blocks of a file a machine deals with at a time: those
// of 1 GiB. Of more, the tree of the running system would be read less often.
const UsualPart = 1 << 18

var (
	// ErrOther says that an index has another SHA-256 than it should.
	ErrOther = errors.New("block index has another SHA-256 than it should")
	// ErrChanged says that an index is not what it was when it was opened.
	ErrChanged = errors.New("block index has changed since it was opened: what it lies on does not keep what is written to it; run this again, and it is fetched once more")
)

// Open reads an index of the files at these places, front to back, and compares its
// SHA-256 with sum. It keeps 72 bytes for each part of so many blocks, 0 standing for
// UsualPart, and r, from which the parts are read again when they are asked for.
func Open(r *io.SectionReader, sum []byte, places []Place, partBlocks int) (*Index, error) {
	total := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(r, 0, r.Size()), total), 64<<10)
	x, err := open(in, r, places, partBlocks)
	// Whatever is wrong with it, an index that nobody has signed is that first.
	if _, readErr := io.Copy(io.Discard, in); readErr != nil {
		return nil, fmt.Errorf("read the block index: %w", readErr)
	}
	if !bytes.Equal(total.Sum(nil), sum) {
		return nil, ErrOther
	}
	return x, err
}

func open(in io.Reader, r *io.SectionReader, places []Place, partBlocks int) (*Index, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(in, head); err != nil || string(head[:len(magic)]) != magic {
		return nil, fmt.Errorf("block index of %d bytes does not start as one", r.Size())
	}
	per := binary.LittleEndian.Uint32(head[len(magic):])
	if per < 1 || per > MaxMemberBlocks || !zero(head[len(magic)+4:]) {
		return nil, fmt.Errorf("block index has members of %d blocks, want 1 to %d", per, MaxMemberBlocks)
	}
	size, err := Size(int(per), places)
	if err != nil {
		return nil, err
	}
	if r.Size() != size {
		return nil, fmt.Errorf("block index has %d bytes, want %d for these files", r.Size(), size)
	}
	if partBlocks <= 0 {
		partBlocks = UsualPart
	}
	x := &Index{r: r, memberBlocks: int(per)}
	x.partBlocks = max(partBlocks/x.memberBlocks, 1) * x.memberBlocks // no member lies in two parts
	return x, x.read(in, places)
}

// read goes through the sizes of all files, and then the digests.
func (x *Index) read(in io.Reader, places []Place) error {
	at := int64(headerSize)
	for _, p := range places {
		f := &File{Place: p, index: x, packedAt: at}
		if err := f.measure(in); err != nil {
			return fmt.Errorf("block index of %s: %w", p.Name, err)
		}
		x.files = append(x.files, f)
		at += 2 * int64(f.Members())
	}
	for _, f := range x.files {
		f.hashAt = at
		at += HashSize * int64(f.Blocks())
		for n := range f.runs {
			start, end := f.blocks(n)
			sum := sha256.New()
			if _, err := io.CopyN(sum, in, HashSize*int64(end-start)); err != nil {
				return err
			}
			sum.Sum(f.runs[n].hashes[:0])
		}
	}
	return nil
}

// measure adds the members up.
func (f *File) measure(in io.Reader) error {
	at, member := f.Offset, 0
	var size [2]byte
	for start := 0; start < f.Blocks(); start += f.index.partBlocks {
		f.runs = append(f.runs, run{offset: at})
		sum := sha256.New()
		_, end := f.members(len(f.runs) - 1)
		for ; member < end; member++ {
			if _, err := io.ReadFull(in, size[:]); err != nil {
				return err
			}
			n := binary.LittleEndian.Uint16(size[:])
			if n == 0 {
				return fmt.Errorf("member %d of 0 bytes", member)
			}
			at += int64(n)
			sum.Write(size[:])
		}
		sum.Sum(f.runs[len(f.runs)-1].packed[:0])
	}
	if at != f.Offset+f.Packed {
		return fmt.Errorf("members of %d bytes in all, want %d", at-f.Offset, f.Packed)
	}
	return nil
}

// blocks says which blocks lie in a part, and members which members.
func (f *File) blocks(part int) (start, end int) {
	start = part * f.index.partBlocks
	return start, min(start+f.index.partBlocks, f.Blocks())
}

func (f *File) members(part int) (start, end int) {
	first, last := f.blocks(part)
	return first / f.index.memberBlocks, members(last, f.index.memberBlocks)
}

// Size returns the size in bytes of the index of files.
func Size(memberBlocks int, places []Place) (int64, error) {
	size := int64(headerSize)
	for _, p := range places {
		if p.Size < 1 || p.Size > MaxBlocks*BlockSize || p.Packed < 1 || p.Offset < 0 || p.Offset > math.MaxInt64-p.Packed {
			return 0, fmt.Errorf("%s: %d bytes at offset %d, packed into %d, cannot be", p.Name, p.Size, p.Offset, p.Packed)
		}
		blocks := Blocks(p.Size)
		size += 2*int64(members(blocks, memberBlocks)) + HashSize*int64(blocks)
	}
	return size, nil
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// File returns what the index has about a file.
func (x *Index) File(name string) (*File, bool) {
	for _, f := range x.files {
		if f.Name == name {
			return f, true
		}
	}
	return nil, false
}

// Blocks is the number of the file's blocks.
func (f *File) Blocks() int { return Blocks(f.Size) }

// Members is the number of gzip members that hold the file.
func (f *File) Members() int { return members(f.Blocks(), f.index.memberBlocks) }

// Content returns which part of the file member i, 0 to Members-1, holds, in bytes.
func (f *File) Content(i int) (offset int64, size int) {
	member := int64(f.index.memberBlocks) * BlockSize
	offset = int64(i) * member
	return offset, int(min(member, f.Size-offset))
}

// First returns the first block of member i. The last one's next is Blocks.
func (f *File) First(i int) int { return min(i*f.index.memberBlocks, f.Blocks()) }

// Parts is in how many parts the file is dealt with.
func (f *File) Parts() int { return len(f.runs) }

// A Part is what the index has about a run of a file's members, in memory.
// Blocks, members and bytes count from the file's start.
type Part struct {
	File   *File
	number int
	hashes []byte
	packed []byte  // 16 bits a member
	marks  []int64 // offsets of each markth member
}

const mark = 64

// Load reads part n of the file, 0 to Parts-1, in the place of what p had.
func (p *Part) Load(f *File, n int) error {
	p.File, p.number = f, n
	first, end := p.MemberSpan()
	start, stop := p.BlockSpan()
	sum := sha256.New()
	var err error
	if p.packed, err = f.again(p.packed, f.packedAt+2*int64(first), 2*(end-first), sum, f.runs[n].packed); err != nil {
		return err
	}
	if p.hashes, err = f.again(p.hashes, f.hashAt+HashSize*int64(start), HashSize*(stop-start), sum, f.runs[n].hashes); err != nil {
		return err
	}
	at := f.runs[n].offset
	p.marks = p.marks[:0]
	for i := first; i < end; i++ {
		if (i-first)%mark == 0 {
			p.marks = append(p.marks, at)
		}
		at += int64(p.size(i))
	}
	return nil
}

// Reach loads the part after this one where the block lies behind this one's
// last: for who goes from block to block.
func (p *Part) Reach(block int) error {
	if _, end := p.BlockSpan(); block < end {
		return nil
	}
	return p.Load(p.File, p.number+1)
}

// String names the part in front of people.
func (p *Part) String() string {
	if p.File.Parts() == 1 {
		return p.File.Name
	}
	return fmt.Sprintf("%s (part %d of %d)", p.File.Name, p.number+1, p.File.Parts())
}

// again reads size bytes of the index and compares their digest with the first time's.
func (f *File) again(b []byte, at int64, size int, sum hash.Hash, want [sha256.Size]byte) ([]byte, error) {
	if cap(b) < size {
		b = make([]byte, size)
	}
	b = b[:size]
	if err := readFull(f.index.r, b, at); err != nil {
		return b, fmt.Errorf("block index of %s: %w", f.Name, err)
	}
	sum.Reset()
	sum.Write(b)
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		return b, fmt.Errorf("%s: %w", f.Name, ErrChanged)
	}
	return b, nil
}

// BlockSpan returns the first block of the part and the one behind its last.
func (p *Part) BlockSpan() (start, end int) { return p.File.blocks(p.number) }

// MemberSpan returns the first member of the part and the one behind its last.
func (p *Part) MemberSpan() (start, end int) { return p.File.members(p.number) }

// ByteSpan returns where in the file the part starts and ends, in bytes.
func (p *Part) ByteSpan() (start, end int64) {
	first, last := p.BlockSpan()
	return int64(first) * BlockSize, min(int64(last)*BlockSize, p.File.Size)
}

// Hash returns the digest of one of the part's blocks.
func (p *Part) Hash(block int) Hash {
	start, _ := p.BlockSpan()
	return Hash(p.hashes[(block-start)*HashSize:])
}

func (p *Part) size(member int) int {
	first, _ := p.MemberSpan()
	return int(binary.LittleEndian.Uint16(p.packed[2*(member-first):]))
}

// Member returns where one of the part's members lies in the archive.
func (p *Part) Member(i int) (offset int64, size int) {
	first, _ := p.MemberSpan()
	n := i - first
	offset = p.marks[n/mark]
	for j := i - n%mark; j < i; j++ {
		offset += int64(p.size(j))
	}
	return offset, p.size(i)
}

// Check compares the blocks of member i with their digests. content is all
// that the member holds.
func (p *Part) Check(i int, content []byte, h *Hasher) error {
	if _, size := p.File.Content(i); len(content) != size {
		return fmt.Errorf("%s: member %d has %d bytes, want %d", p.File.Name, i, len(content), size)
	}
	first := p.File.First(i)
	for n, sum := range h.All(content) {
		if sum != p.Hash(first+n) {
			return fmt.Errorf("%s: block %d has another digest than its index says", p.File.Name, first+n)
		}
	}
	return nil
}
