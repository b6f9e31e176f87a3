package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/u-root/u-root/pkg/cpio"
)

// FromInitrd returns the contract of a UKI's .initrd section: the first file
// of its first archive. Nothing is decompressed and nothing else is read.
func FromInitrd(initrd []byte) (*Contract, error) {
	rec, err := firstFile(initrd)
	if err != nil {
		return nil, fmt.Errorf("read first file of the initramfs: %w", err)
	}
	if rec.Name != Path {
		return nil, fmt.Errorf("initramfs starts with %q, want %q", rec.Name, Path)
	}
	if rec.FileSize > MaxSize {
		return nil, fmt.Errorf("boot contract has %d bytes, more than %d", rec.FileSize, MaxSize)
	}
	text := make([]byte, rec.FileSize)
	if _, err := rec.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s from the initramfs: %w", Path, err)
	}
	return Parse(text)
}

// maxArchives bounds how many uncompressed archives an initramfs is looked through.
const maxArchives = 8

// factFromInitrd returns a file of a UKI's .initrd section that is the only one of its archive,
// at most limit bytes; nil where the archives of one file that it begins with have none of that
// name. Nothing is decompressed.
func factFromInitrd(initrd []byte, name string, limit int64) ([]byte, error) {
	for range maxArchives {
		rec, err := firstFile(initrd)
		if err != nil {
			return nil, nil // what follows is compressed
		}
		end, err := endOfFirst(initrd)
		if err != nil {
			return nil, nil // an archive of more than one file: the initramfs proper
		}
		if rec.Name != name {
			initrd = initrd[end:]
			continue
		}
		if int64(rec.FileSize) > limit {
			return nil, fmt.Errorf("%s has %d bytes, more than %d", name, rec.FileSize, limit)
		}
		text := make([]byte, rec.FileSize)
		if _, err := rec.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read %s from the initramfs: %w", name, err)
		}
		return text, nil
	}
	return nil, nil
}

// firstFile returns the first record that is not a directory's.
func firstFile(initrd []byte) (cpio.Record, error) {
	records := cpio.Newc.Reader(bytes.NewReader(initrd))
	for at := int64(0); ; {
		if err := nameFits(initrd, at); err != nil {
			return cpio.Record{}, err
		}
		rec, err := records.ReadRecord()
		if err != nil || rec.Mode&cpio.S_IFMT != cpio.S_IFDIR {
			return rec, err
		}
		at = (rec.FilePos + int64(rec.FileSize) + 3) &^ 3
	}
}

// nameFits refuses a record that says that its name is longer than the archive:
// the reader would ask for that much memory, up to 4 GiB. The length is the
// twelfth number of the header, each of eight hexadecimal digits behind the six
// of the magic (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
func nameFits(initrd []byte, at int64) error {
	const start, end = 6 + 11*8, 6 + 12*8
	size := int64(len(initrd))
	if at >= size || size-at < end {
		return io.ErrUnexpectedEOF
	}
	length, err := strconv.ParseUint(string(initrd[at+start:at+end]), 16, 32)
	if err != nil || int64(length) > size-at {
		return fmt.Errorf("the record at byte %d has a name of 0x%q bytes, and the archive ends at %d", at, initrd[at+start:at+end], size)
	}
	return nil
}

// Archive returns what an initramfs starts with: an uncompressed cpio archive with
// the contract alone, and one with what this source tree's initagent can read. Another
// archive can follow.
func Archive(c *Contract) ([]byte, error) { return ArchiveWith(c, Own()) }

// ArchiveWith is Archive for an initagent of other abilities.
func ArchiveWith(c *Contract, a Abilities) ([]byte, error) {
	text, err := c.Encode()
	if err != nil {
		return nil, err
	}
	first, err := archive(Path, text)
	if err != nil || a == before() {
		return first, err
	}
	able, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	second, err := archive(AbilitiesPath, append(able, '\n'))
	return append(first, second...), err
}
