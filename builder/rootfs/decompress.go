package rootfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
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
	// maxWindow bounds what a zstd stream may ask to keep in memory: what
	// `zstd --long=27`, the greatest that zstd itself takes unasked, needs.
	maxWindow = 128 << 20
	// maxDictionary likewise bounds LZMA: `lzma -9` and `xz -9` need half of it.
	maxDictionary = 128 << 20
)

// foreign are files that are given as a root file system and are not tar
// archives, by how they begin, and what to do about it.
var foreign = []struct {
	at    int
	magic string
	what  string
}{
	{0, "\x1f\x9d", "compressed with compress (.tar.Z): give `zcat FILE | zstd` instead"},
	{0, "LZIP", "compressed with lzip: give `lzip -dc FILE | zstd` instead"},
	{0, "PK\x03\x04", "a zip archive, which keeps neither owners nor links: give a tar archive"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive: give a tar archive"},
	{0, "070701", "a cpio archive: unpack it as root, and give the directory"},
	{0, "070707", "a cpio archive: unpack it as root, and give the directory"},
	{0, "\xc7\x71", "a cpio archive: unpack it as root, and give the directory"},
	{0, "!<arch>\n", "a Debian package or another ar archive: give a root file system that the package is installed in"},
	{0, "\xed\xab\xee\xdb", "an RPM package: give a root file system that the package is installed in"},
	{0, "hsqs", "a squashfs image: unpack it with `unsquashfs` as root, and give the directory"},
	{0, "QFI\xfb", "a qcow2 disk: mount its file system, and give a tar archive of it"},
	{0, "KDMV", "a VMDK disk: mount its file system, and give a tar archive of it"},
	{0, "# Disk DescriptorFile", "the description of a VMDK disk: mount the disk's file system, and give a tar archive of it"},
	{64, "\x7f\x10\xda\xbe", "a VDI disk: mount its file system, and give a tar archive of it"},
	{0, "conectix", "a VHD disk: mount its file system, and give a tar archive of it"},
	{0, "vhdxfile", "a VHDX disk: mount its file system, and give a tar archive of it"},
	{0, "XFSB", "an XFS file system: mount it, and give a tar archive of what is in it"},
	{65536 + 64, "_BHRfS_M", "a btrfs file system: mount it, and give a tar archive of what is in it"},
	{0, "xar!", "a xar archive: give a tar archive"},
	{0, "-----BEGIN PGP", "an OpenPGP message: decrypt it first"},
	{510, "\x55\xaa", "a disk or a file system: mount it, and give a tar archive of what is in it"},
	{1024, "\xe2\xe1\xf5\xe0", "an EROFS image: unpack it with `fsck.erofs --extract=DIR` as root, and give the directory"},
	{1024 + 56, "\x53\xef", "an ext4 file system: mount it, and give a tar archive of what is in it"},
	{32769, "CD001", "an ISO image: give a tar archive of the root file system that is in it"},
}

// foreignKind says what a file is that is not a tar archive, from its first bytes;
// empty where it is not known.
func foreignKind(start []byte) string {
	for _, f := range foreign {
		if len(start) >= f.at && bytes.HasPrefix(start[f.at:], []byte(f.magic)) {
			return f.what
		}
	}
	return ""
}

// interruptible is read until the build is cancelled: what unpacks it may read terabytes
// of zeros, as of a file that truncate has made larger, before it gives anything back.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// peekSize is enough to know every kind of foreign.
const peekSize = 65536 + 64 + 8

// decompress returns the content of a possibly compressed stream.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(r, 1<<20)
	magic, err := in.Peek(peekSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read archive: %w", err)
	}
	begins := func(with string) bool { return bytes.HasPrefix(magic, []byte(with)) }
	switch {
	case begins("\x1f\x8b"):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("gunzip: %w", err)
		}
		z.Multistream(false)
		return gzipMembers{z, in}, func() { z.Close() }, nil
	// A skippable frame may come first (RFC 8878, section 3.1.2).
	case begins("\x28\xb5\x2f\xfd"), isSkippable(magic):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return z, z.Close, nil
	case begins("\xfd7zXZ\x00"):
		z, err := xz.NewReader(in, maxDictionary)
		if err != nil {
			return nil, nil, damaged(err)
		}
		return bufio.NewReaderSize(xzStream{z}, 1<<20), func() {}, nil
	case begins("BZh"):
		return bzip2.NewReader(in), func() {}, nil
	case begins("\x04\x22\x4d\x18"), begins(legacyLZ4):
		return &lz4Frames{in: in}, func() {}, nil
	case begins("\x5d\x00\x00"):
		z, err := lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(in)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress lzma: %w", err)
		}
		return bufio.NewReaderSize(&lzmaStream{z: z, in: in}, 1<<20), func() {}, nil
	}
	return in, func() {}, checkForeign(in)
}

// gzipMembers reads members one after another (RFC 1952, section 2.2), and takes zeros
// after the last, as gzip does: a tape or dd fills up its last block.
type gzipMembers struct {
	*gzip.Reader
	in *bufio.Reader // which the reader takes nothing from beyond a member
}

func (z gzipMembers) Read(p []byte) (int, error) {
	for {
		n, err := z.Reader.Read(p)
		switch {
		case !errors.Is(err, io.EOF):
			return n, err
		case n > 0:
			return n, nil
		}
		if err := z.next(); err != nil {
			return 0, err
		}
	}
}

// next begins another member; io.EOF where there is none.
func (z gzipMembers) next() error {
	for padding := 0; padding <= maxPadding; {
		if _, err := z.in.Peek(1); err != nil {
			return err
		}
		have, err := z.in.Peek(z.in.Buffered())
		if err != nil {
			return err
		}
		rest := bytes.TrimLeft(have, "\x00")
		zeros, err := z.in.Discard(len(have) - len(rest))
		if err != nil {
			return err
		}
		if padding += zeros; len(rest) == 0 {
			continue
		}
		if err := z.Reset(z.in); err != nil {
			return err
		}
		z.Multistream(false)
		return nil
	}
	return fmt.Errorf("more than %d bytes of zeros follow what is compressed with gzip", maxPadding)
}

// xzStream tells an early end as the other formats' readers do.
type xzStream struct{ *xz.Reader }

func (x xzStream) Read(p []byte) (int, error) {
	n, err := x.Reader.Read(p)
	if errors.Is(err, xz.ErrBuf) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// lzmaStream ends where its file does: such a file has one stream (lzma takes nothing
// after it), and its reader leaves the rest unread. An error stays one when it is
// asked again, as it is after a Peek: the reader tells an early end once.
type lzmaStream struct {
	z   io.Reader
	in  *bufio.Reader // which the reader takes nothing from beyond the stream
	err error
}

func (l *lzmaStream) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.z.Read(p)
	if errors.Is(err, io.EOF) {
		switch _, more := l.in.Peek(1); {
		case more == nil:
			err = errors.New("more follows the end of what is compressed with lzma, as when two files were put together")
		case !errors.Is(more, io.EOF):
			err = more
		}
	}
	l.err = err
	return n, err
}

// lz4Frames reads frames one after another, as `cat a.lz4 b.lz4` makes them and lz4
// takes them (LZ4 Frame Format, "Frame Concatenation"): the library ends after one.
type lz4Frames struct {
	in    *bufio.Reader
	frame *lz4.Reader // nil between two
}

func (f *lz4Frames) Read(p []byte) (int, error) {
	for {
		if f.frame == nil {
			if err := f.next(); err != nil {
				return 0, err // the end, or what is wrong
			}
		}
		n, err := f.frame.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if f.frame = nil; n > 0 {
			return n, nil
		}
	}
}

// next begins another frame; io.EOF where there is none.
func (f *lz4Frames) next() error {
	for {
		magic, err := f.in.Peek(8)
		switch {
		case len(magic) == 0:
			return err
		case bytes.HasPrefix(magic, []byte(legacyLZ4)): // ends where the file does
			f.frame = lz4.NewReader(f.in)
			return nil
		case !isSkippable(magic):
			f.frame = lz4.NewReader(unfinished{f.in})
			return nil
		case len(magic) < 8:
			return io.ErrUnexpectedEOF
		}
		if _, err := f.in.Discard(8 + int(binary.LittleEndian.Uint32(magic[4:]))); err != nil {
			return unexpected(err)
		}
	}
}

// legacyLZ4 begins what lz4 -l makes.
const legacyLZ4 = "\x02\x21\x4c\x18"

// isSkippable reports whether a frame has no data of the file's (RFC 8878, section 3.1.2;
// LZ4 Frame Format, "Skippable Frames").
func isSkippable(start []byte) bool {
	return len(start) > 4 && start[0]&0xf0 == 0x50 && bytes.HasPrefix(start[1:], []byte("\x2a\x4d\x18"))
}

// unfinished is read by what needs more of it: a frame of lz4 has an end mark, and
// the library takes the end of the file for that and for the checksum after it.
type unfinished struct{ r io.Reader }

func (u unfinished) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	return n, unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkForeign refuses what is not a tar archive, and known.
func checkForeign(in *bufio.Reader) error {
	magic, err := in.Peek(peekSize)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errShort
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return damaged(err)
	}
	if what := foreignKind(magic); what != "" && !isTar(magic) {
		return fmt.Errorf("not a tar archive but %s", what)
	}
	return nil
}

// isTar reports whether a file starts with the header of a tar (POSIX.1-1988
// and later have a magic in it).
func isTar(start []byte) bool {
	return len(start) >= 512 && bytes.HasPrefix(start[257:], []byte("ustar"))
}
