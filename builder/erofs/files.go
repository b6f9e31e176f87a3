package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
)

// A File is a regular file of an image.
type File struct {
	Name string // from the image's top, without a leading slash
	Size int64  // bytes
	// Plain says that it lies in a run of blocks, from block First on, as it is; what
	// follows its end in its last block is zeros.
	Plain bool
	First uint32
}

// Blocks is the number of blocks that a plain file takes.
func (f *File) Blocks() int { return int((f.Size + BlockSize - 1) / BlockSize) }

// What EROFS has on the disk (Linux, fs/erofs/erofs_fs.h).
const (
	inodeCompact, inodeExtended = 32, 64
	direntSize                  = 12
	layoutPlain, layoutInline   = 0, 2
	modeType                    = 0xf000
	modeDirectory, modeRegular  = 0x4000, 0x8000

	maxDepth     = 512
	maxDirectory = 256 << 20 // bytes
	maxFiles     = 16 << 20
	maxFileSize  = 1 << 44
)

// Walk calls do for the regular files of an image, a file with several names once for
// each, in the order of their directories. It reads nothing but inodes and directories, and
// fails where these are not as mkfs.erofs writes them.
func Walk(r io.ReaderAt, do func(File) error) error {
	h, err := ReadHeader(r)
	if err != nil {
		return err
	}
	var sb [superblockSize]byte
	if _, err := r.ReadAt(sb[:], superblockOffset); err != nil {
		return fmt.Errorf("read EROFS superblock: %w", err)
	}
	w := &walk{r: r, do: do, blocks: h.Blocks, meta: int64(binary.LittleEndian.Uint32(sb[40:])) * BlockSize}
	return w.directory("", uint64(binary.LittleEndian.Uint16(sb[14:])), 0)
}

type walk struct {
	r      io.ReaderAt
	do     func(File) error
	blocks uint64 // of the image
	meta   int64  // where inodes are counted from
	files  int    // seen so far, directories included
}

// An inode is what is needed of one.
type inode struct {
	mode   uint16
	layout uint16
	size   int64
	first  uint32 // block
	tail   int64  // where what is beside the inode lies, in bytes
}

func (w *walk) inode(nid uint64) (*inode, error) {
	if nid > w.blocks*BlockSize/inodeCompact {
		return nil, fmt.Errorf("inode %d lies beyond the image's end", nid)
	}
	at := w.meta + int64(nid)*inodeCompact
	var b [inodeExtended]byte
	if n, err := w.r.ReadAt(b[:], at); n < inodeCompact {
		return nil, fmt.Errorf("read inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	format, size := le.Uint16(b[0:]), int64(inodeCompact)
	i := &inode{mode: le.Uint16(b[4:]), layout: format >> 1 & 7, size: int64(le.Uint32(b[8:])), first: le.Uint32(b[16:])}
	if format&1 != 0 {
		full := le.Uint64(b[8:])
		if full >= maxFileSize {
			return nil, fmt.Errorf("inode %d has %d bytes", nid, full)
		}
		i.size, size = int64(full), inodeExtended
	}
	if n := int64(le.Uint16(b[2:])); n > 0 {
		size += 12 + (n-1)*4 // extended attributes
	}
	i.tail = at + size
	blocks := uint64(i.size / BlockSize)
	if i.layout == layoutPlain {
		blocks = uint64((i.size + BlockSize - 1) / BlockSize)
	}
	if (i.layout == layoutPlain || i.layout == layoutInline) && blocks > 0 && (uint64(i.first) >= w.blocks || blocks > w.blocks-uint64(i.first)) {
		return nil, fmt.Errorf("inode %d has blocks %d to %d, and the image %d", nid, i.first, uint64(i.first)+blocks-1, w.blocks)
	}
	return i, nil
}

// directory goes through a directory, and through those in it.
func (w *walk) directory(name string, nid uint64, depth int) error {
	i, err := w.inode(nid)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	if i.mode&modeType != modeDirectory || i.layout != layoutPlain && i.layout != layoutInline || i.size > maxDirectory || depth > maxDepth {
		return fmt.Errorf("/%s: not a directory that is understood (mode %o, layout %d, %d bytes, depth %d)", name, i.mode, i.layout, i.size, depth)
	}
	for at := int64(0); at < i.size; at += BlockSize {
		b := make([]byte, min(BlockSize, i.size-at))
		from := int64(i.first)*BlockSize + at
		if i.layout == layoutInline && len(b) < BlockSize {
			from = i.tail
		}
		if _, err := w.r.ReadAt(b, from); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
		if err := w.entries(name, b, depth); err != nil {
			return err
		}
	}
	return nil
}

// entries goes through a block of a directory.
func (w *walk) entries(dir string, b []byte, depth int) error {
	bad := fmt.Errorf("/%s: a directory that is damaged", dir)
	if len(b) < direntSize {
		return bad
	}
	le := binary.LittleEndian
	start := int(le.Uint16(b[8:]))
	if start%direntSize != 0 || start < direntSize || start > len(b) {
		return bad
	}
	for at := 0; at < start; at += direntSize {
		from, to := int(le.Uint16(b[at+8:])), len(b)
		if at+direntSize < start {
			to = int(le.Uint16(b[at+direntSize+8:]))
		}
		if from < start || from >= to || to > len(b) {
			return bad
		}
		name := b[from:to]
		for n, c := range name {
			if c == 0 { // the last one's end
				name = name[:n]
				break
			}
		}
		switch string(name) {
		case ".", "..":
			continue
		case "":
			return bad
		}
		if err := w.entry(path.Join(dir, string(name)), le.Uint64(b[at:]), depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(name string, nid uint64, depth int) error {
	if w.files++; w.files > maxFiles {
		return errors.New("EROFS: more files than can be")
	}
	i, err := w.inode(nid)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	switch i.mode & modeType {
	case modeDirectory:
		return w.directory(name, nid, depth+1)
	case modeRegular:
		f := File{Name: name, Size: i.size}
		if i.layout == layoutPlain && i.size > 0 {
			f.Plain, f.First = true, i.first
		}
		return w.do(f)
	}
	return nil
}
