package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds what a zstd stream may ask to keep in memory: what
// `zstd --long=27`, the greatest that zstd itself takes unasked, needs.
const maxWindow = 128 << 20

// decompress returns the content of a possibly compressed stream.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(r, 1<<20)
	magic, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("gunzip: %w", err)
		}
		return z, func() { z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress xz: %w", err)
		}
		return bufio.NewReaderSize(z, 1<<20), func() {}, nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, nil, errors.New("the archive is compressed with bzip2: want gzip, xz, zstd or none")
	}
	return in, func() {}, nil
}

// errOCI ends the reading of what turns out to be an OCI image.
var errOCI = errors.New("the archive is an OCI image")

// unpackTar hands the files of a tar archive to put.
func (t *Tree) unpackTar(ctx context.Context, archive io.Reader, put func(Entry, io.Reader) error) error {
	tail := &tail{r: archive}
	in := tar.NewReader(tail)
	for count := 0; ; count++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			if count == 0 {
				return errors.New("the archive is empty")
			}
			return tail.ended()
		}
		if err != nil {
			return fmt.Errorf("read tar archive: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if err := put(e, in); err != nil {
			return err
		}
	}
}

// tail watches for the zero block that a tar archive ends with: the tar reader
// takes the end of the data for the end of the archive too, and half a root
// file system for a whole one.
type tail struct {
	r     io.Reader
	zeros int64 // bytes of zero at the end of what was read
}

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	rest := bytes.TrimRight(p[:n], "\x00")
	if len(rest) > 0 {
		t.zeros = 0
	}
	t.zeros += int64(n - len(rest))
	return n, err
}

func (t *tail) ended() error {
	if t.zeros < 512 {
		return errors.New("the archive is cut off: it has no end mark")
	}
	return nil
}

// entryOf translates a tar header.
func entryOf(h *tar.Header) (Entry, error) {
	e := Entry{
		Name: h.Name, Mode: uint32(h.Mode & 0o7777), UID: h.Uid, GID: h.Gid, ModTime: h.ModTime,
		Target: h.Linkname, Xattrs: xattrsOf(h),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.Kind, e.Size = Regular, h.Size
	case tar.TypeDir:
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
	if e.UID < 0 || e.GID < 0 {
		return e, fmt.Errorf("%s: owner %d:%d is negative", h.Name, e.UID, e.GID)
	}
	return e, nil
}

// xattrsOf returns the extended attributes of a tar entry. Here a label of
// SELinux is the image's own, since whoever packed the archive chose to.
func xattrsOf(h *tar.Header) map[string]string {
	var xattrs map[string]string
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keepXattr(name) && name != "security.selinux" {
			continue
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[name] = value
	}
	return xattrs
}
