// Package erofs makes system images with mkfs.erofs and reads the header of
// one.
//
// It refuses an image that is not what was asked for, and it never mounts
// one: that is the machine's affair, behind dm-verity.
package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/gpt"
)

// Tool is the program that makes the file system (erofs-utils 1.5 or later).
const Tool = "mkfs.erofs"

// Options say how an image is made.
type Options struct {
	UUID        gpt.GUID
	Date        time.Time // of the image; later times in it become this one
	Compression string    // as -z takes it; empty for none
	AllRoot     bool      // every file is root's, no matter who owns it in the directory
	// Sparse keeps the holes of files. Without compression that takes a list of
	// the blocks of every file; with it, zeros take next to nothing anyway.
	Sparse bool
	// Plain are names of files that are kept out of the compression, as an extended
	// regular expression (POSIX.1-2017, XBD 9.4) that has no space; empty for none. Each lies
	// in a run of blocks.
	Plain string
	// NoXattrs keeps none of the directory's extended attributes, which may be the host's.
	NoXattrs bool
}

// packed are names of files that are compressed already, as an extended regular
// expression. In a Debian with a kernel mkfs.erofs spends three quarters of its
// time in vain on these; the image is the same.
const packed = `\.(br|bz2|gif|gz|jpe?g|lz4|lzma|png|webp|woff2?|xz|zst)$`

// hintsOf is the file that keeps files out of the compression: for each pattern the size
// of its clusters, which 0 stands for none.
func hintsOf(plain string) string {
	text := "0 " + packed + "\n"
	if plain != "" {
		text += "0 " + plain + "\n"
	}
	return text
}

// Make writes the file system of a directory to a file. The same directory and
// options give the same bytes.
func Make(ctx context.Context, file, directory string, o Options) error {
	// By default the last part of a file lies beside its inode, and so on the
	// same block as something that every update changes: where later files are.
	// Apart, a few blocks of inodes change and not all of these.
	args := []string{"--quiet", "-U", o.UUID.String(), "-Enoinline_data"}
	if o.Compression != "" {
		hints := file + ".hints"
		if err := os.WriteFile(hints, []byte(hintsOf(o.Plain)), 0o600); err != nil {
			return err
		}
		defer os.Remove(hints) // as with the image, where this fails its directory is removed
		args = append(args, "-z"+o.Compression, "--compress-hints="+hints)
	}
	if o.Sparse && o.Compression == "" {
		args = append(args, fmt.Sprintf("--chunksize=%d", BlockSize))
	}
	if o.NoXattrs {
		args = append(args, "-x-1")
	}
	if o.AllRoot {
		args = append(args, "--all-root")
	}
	cmd := exec.CommandContext(ctx, Tool, append(args, file, directory)...)
	// With the variable instead of -T, files keep times that lie before it:
	// compiled Python, for one, is found stale when its source's time changed.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "SOURCE_DATE_EPOCH="+strconv.FormatInt(o.Date.Unix(), 10))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%s is not installed: it is in the package erofs-utils", Tool)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%s: %w: %s", Tool, err, last(said.String()))
	}
	return nil
}

// last is what a program said last: one that cannot write says so of every block.
func last(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}

// ToolVersion asks [Tool] for its version, such as "1.8.6". It is empty where none is told.
func ToolVersion(ctx context.Context) string {
	// Up to 1.5 the option is not known: the version comes first all the same, on the
	// standard output, and the usage is an error on the other.
	said, err := exec.CommandContext(ctx, Tool, "--version").Output()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return ""
	}
	return versionIn(string(said))
}

// versionIn finds the version in what [Tool] says of itself.
func versionIn(said string) string {
	line, _, _ := strings.Cut(said, "\n")
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), Tool+" ")
	if version := strings.TrimPrefix(rest, "(erofs-utils) "); ok && version != "" && version[0] >= '0' && version[0] <= '9' {
		return version
	}
	return ""
}

// A Header is the superblock of an EROFS file system, as far as it describes
// the whole (Linux, fs/erofs/erofs_fs.h, struct erofs_super_block).
type Header struct {
	Blocks   uint64 // of BlockSize, the metadata included
	Inodes   uint64
	Created  time.Time
	UUID     gpt.GUID
	Features uint32 // that a reader must know ("incompatible")
}

// BlockSize is the size of a block in bytes: the verity tree's, and the only one that
// every kernel with EROFS reads.
const BlockSize = 4096

const (
	superblockOffset = 1024
	superblockSize   = 128
	magic            = 0xe0f5e1e2
	featureChecksum  = 1 << 0 // compatible
	blockBits        = 12
)

// ErrNotErofs is returned by ReadHeader for other data.
var ErrNotErofs = errors.New("not an EROFS file system")

// ReadHeader reads the superblock and checks its checksum where it has one.
func ReadHeader(r io.ReaderAt) (*Header, error) {
	var sb [superblockSize]byte
	if _, err := r.ReadAt(sb[:], superblockOffset); errors.Is(err, io.EOF) {
		return nil, ErrNotErofs
	} else if err != nil {
		return nil, fmt.Errorf("read EROFS superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint32(sb[0:]) != magic {
		return nil, ErrNotErofs
	}
	if sb[12] != blockBits {
		return nil, fmt.Errorf("EROFS superblock claims blocks of 2^%d bytes, want 2^%d", sb[12], blockBits)
	}
	if le.Uint32(sb[8:])&featureChecksum != 0 {
		if err := checksum(r); err != nil {
			return nil, err
		}
	}
	return &Header{
		Blocks:   uint64(le.Uint32(sb[36:])),
		Inodes:   le.Uint64(sb[16:]),
		Created:  time.Unix(int64(le.Uint64(sb[24:])), 0).UTC(),
		UUID:     gpt.GUID(sb[48:64]),
		Features: le.Uint32(sb[80:]),
	}, nil
}

// checksum compares the CRC-32C over the first block from the superblock on,
// its own field taken as zero.
func checksum(r io.ReaderAt) error {
	var block [BlockSize - superblockOffset]byte
	if _, err := r.ReadAt(block[:], superblockOffset); err != nil {
		return fmt.Errorf("read EROFS superblock: %w", err)
	}
	want := binary.LittleEndian.Uint32(block[4:])
	clear(block[4:8])
	// EROFS starts at all ones, as usual, but does not invert the result.
	have := ^crc32.Checksum(block[:], crc32.MakeTable(crc32.Castagnoli))
	if have != want {
		return fmt.Errorf("EROFS superblock has the checksum %08x, want %08x", have, want)
	}
	return nil
}
