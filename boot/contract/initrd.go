package contract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/u-root/u-root/pkg/cpio"
)

// FromInitrd returns the contract of a UKI's .initrd section: the first file
// of its first archive. Nothing is decompressed and nothing else is read.
func FromInitrd(initrd []byte) (*Contract, error) {
	records := cpio.Newc.Reader(bytes.NewReader(initrd))
	rec, err := records.ReadRecord()
	for err == nil && rec.Mode&cpio.S_IFMT == cpio.S_IFDIR {
		rec, err = records.ReadRecord()
	}
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

// Archive returns the uncompressed cpio archive that an initramfs starts with:
// the contract alone, padded to 512 bytes so that another archive can follow.
func Archive(c *Contract) ([]byte, error) {
	text, err := c.Encode()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	records := []cpio.Record{cpio.Directory(path.Dir(Path), 0o755), cpio.StaticFile(Path, string(text), 0o444)}
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, fmt.Errorf("write %s: %w", Path, err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("end archive of %s: %w", Path, err)
	}
	if rest := out.Len() % 512; rest != 0 {
		out.Write(make([]byte, 512-rest))
	}
	return out.Bytes(), nil
}
