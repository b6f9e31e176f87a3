package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// errCutOff is returned for an archive that ends early, as far as its end mark
// tells.
var errCutOff = errors.New("the archive is cut off: it has no end mark: make or copy it again")

// errShort is returned for an archive whose compressed data ends early.
var errShort = errors.New("the archive is cut off: make or copy it again")

// Types of GNU tar's entries that package tar has no name for.
const (
	gnuDirectory    = 'D' // with a list of what was in it
	gnuContinuation = 'M' // of a file in the volume before
	gnuVolume       = 'V' // the archive's label
)

// damaged says that an archive cannot be read.
func damaged(err error) error {
	if errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("unpacking the archive takes more memory than the %d MB that it may (%w): compress it with less, as `xz -9` or `zstd --long=27` do", maxDictionary>>20, err)
	}
	return fmt.Errorf("the archive is damaged: %w: make or copy it again", err)
}

// unpackTar hands the files of a tar archive to put. An archive without any, or
// without an end mark, is an error that may be passed over where something
// else tells that it is whole.
func unpackTar(ctx context.Context, archive io.Reader, put func(Entry, io.Reader) error) error {
	tail := &tail{r: archive}
	in := tar.NewReader(tail)
	last := ""
	for count := 0; ; count++ {
		h, err := nextHeader(ctx, in, tail)
		if errors.Is(err, io.EOF) {
			return tail.ended()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if tail.cut {
			return fmt.Errorf("%w (its compressed data ends early, after %d files, the last of which is %q)", errShort, count, last)
		}
		if count == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return errors.New("not a tar archive: want tar, plain or compressed with gzip, zstd, xz, bzip2, lz4 or lzma")
		}
		if err != nil {
			return fmt.Errorf("read tar archive, after %d files, the last of which is %q: %w", count, last, err)
		}
		last = h.Name
		switch h.Typeflag {
		case tar.TypeXGlobalHeader:
			if err := globalHeader(h); err != nil {
				return err
			}
			continue
		case gnuVolume:
			continue
		case gnuContinuation:
			return fmt.Errorf("%s: goes on from another volume of the archive: put the volumes together with `tar --concatenate`, or pack into one", h.Name)
		}
		if err := dumped(h, in); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		e, err := tarEntry(h)
		if err != nil {
			return err
		}
		if err := put(e, in); err != nil {
			return err
		}
	}
}

// nextHeader goes on to the next file. What is left of the content before is read first,
// so that it does not count for the end mark.
func nextHeader(ctx context.Context, in *tar.Reader, tail *tail) (*tar.Header, error) {
	for {
		if err := ctx.Err(); err != nil { // a hole may be larger than any disk
			return nil, err
		}
		_, err := io.CopyN(io.Discard, in, 1<<20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	tail.entry()
	return in.Next()
}

// globalHeader refuses what would count for every file after it (POSIX, pax, "pax Header
// Block"): package tar leaves that to its caller. A comment, in which git archive names
// the commit, and the label of GNU tar say nothing of a file.
func globalHeader(h *tar.Header) error {
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if key != "comment" && key != "GNU.volume.label" {
			return fmt.Errorf("the archive has a global PAX header with %q for all files after it, which is not supported: unpack it as root and pack it again (tar -C DIRECTORY -cf FILE .)", key)
		}
	}
	return nil
}

// inside returns where a file of an archive goes: a name is relative to the tree, with
// a slash before it or not, and symbolic links above it are those of the tree, so that
// a layer may put files below a link of a lower one.
func (t *Tree) inside(name string) (string, error) {
	if name != "" && strings.Trim(name, "/") == "" {
		return ".", nil
	}
	name, err := cleanName(strings.TrimLeft(name, "/"))
	if err != nil || t.dirs[path.Dir(name)] != nil {
		return name, err // the usual case: what is in dirs has no links above it
	}
	dir, err := t.follow(path.Dir(name), true)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return path.Join(dir, path.Base(name)), nil
}

// put adds a file of an archive.
func (t *Tree) put(e Entry, content io.Reader) (err error) {
	if e.Name, err = t.inside(e.Name); err != nil {
		return err
	}
	if e.Kind == HardLink {
		if e.Target, err = t.inside(e.Target); err != nil {
			return fmt.Errorf("%s: hard link to %w", e.Name, err)
		}
	}
	return t.Put(e, content)
}

const maxDump = 16 << 20 // bytes of the list of a directory

// dumped checks the list of a directory in an archive of GNU tar's --listed-incremental
// (tar manual, "Dumpdir"). All of the files must be in this archive.
func dumped(h *tar.Header, in io.Reader) error {
	list, ok := h.PAXRecords["GNU.dumpdir"]
	if h.Typeflag == gnuDirectory {
		text, err := io.ReadAll(io.LimitReader(in, maxDump))
		if err != nil {
			return fmt.Errorf("read list of an incremental dump: %w", err)
		}
		list, ok = string(text), true
	}
	if !ok {
		return nil
	}
	for entry := range strings.SplitSeq(list, "\x00") {
		if strings.HasPrefix(entry, "N") {
			return fmt.Errorf("this is an incremental dump, which has not all files: %q is in an earlier one; give a full dump (level 0)", path.Join(h.Name, entry[1:]))
		}
	}
	return nil
}

// blockSize is that of a tar archive, in bytes.
const blockSize = 512

// tail watches for the zero block that a tar archive ends with: the tar reader
// takes the end of the data for the end of the archive too, and half a root
// file system for a whole one.
type tail struct {
	r       io.Reader
	pos     int64 // in the archive, in bytes
	from    int64 // where the first block after a file's content is
	nonzero bool  // from there on is more than zeros: what belongs to another file
	cut     bool  // what unpacks it has met its end too early
}

// entry begins another entry of the archive, after what fills up the last block of
// the content before: that need not be zeros.
func (t *tail) entry() {
	t.from, t.nonzero = (t.pos+blockSize-1)/blockSize*blockSize, false
}

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	rest := p[min(int64(n), max(0, t.from-t.pos)):n]
	t.nonzero = t.nonzero || len(bytes.TrimRight(rest, "\x00")) > 0
	t.pos += int64(n)
	t.cut = t.cut || errors.Is(err, io.ErrUnexpectedEOF)
	return n, err
}

func (t *tail) ended() error {
	if t.nonzero || t.pos-t.from < blockSize {
		return errCutOff
	}
	return nil
}

// maxPadding bounds the zeros after an archive's end mark, in bytes: tar fills up a
// block of its own, which is as large as a tape wants it.
const maxPadding = 1 << 30

// readToEnd reads what follows the end mark of an archive, which no tar reader does.
// Only at its end does a compressed stream say whether what it unpacked to is right.
// All that may follow is zeros: of a second archive nothing would be in the image.
func readToEnd(ctx context.Context, archive io.Reader) error {
	buf := make([]byte, 64<<10)
	for padding := 0; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := archive.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return errors.New("the archive goes on after its end mark, as when one was appended to another: put them together with `tar --concatenate`, or unpack it as root with `tar --ignore-zeros` and pack it again")
		}
		if padding += n; padding > maxPadding {
			return fmt.Errorf("the archive has more than %d bytes of zeros after its end mark: pack it again", maxPadding)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w (its compressed data ends early, after the last file)", errShort)
		case err != nil:
			return damaged(err)
		}
	}
}

// tarEntry translates a tar header.
func tarEntry(h *tar.Header) (Entry, error) {
	e := Entry{
		Name: h.Name, Mode: uint32(h.Mode & 0o7777), UID: h.Uid, GID: h.Gid, ModTime: h.ModTime,
		Target: h.Linkname,
	}
	var err error
	if e.Xattrs, e.ACLs, err = xattrsOf(h); err != nil {
		return e, err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse: // contiguous ones are read as regular (POSIX, pax)
		e.Kind, e.Size = Regular, h.Size
	case tar.TypeDir, gnuDirectory:
		e.Kind = Directory
	case tar.TypeSymlink:
		e.Kind = Symlink
	case tar.TypeLink:
		e.Kind = HardLink
	case tar.TypeChar, tar.TypeBlock:
		e.Kind = CharDevice
		if h.Typeflag == tar.TypeBlock {
			e.Kind = BlockDevice
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return e, fmt.Errorf("%s: device number %d:%d does not exist", h.Name, h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeFifo:
		e.Kind = FIFO
	default:
		return e, fmt.Errorf("%s: tar entry of unknown type %q", h.Name, h.Typeflag)
	}
	return e, nil
}
