package vm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CopySparse copies a regular file to a new path (an existing file is replaced in
// place): as a reflink where the file system can, otherwise only the parts that
// are not holes. The copy has the source's size and holes, and its own time.
func CopySparse(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("copy %s: not a regular file", src)
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := out.Truncate(info.Size()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	err = DataExtents(in, info.Size(), func(off, length int64) error {
		if _, err := in.Seek(off, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(off, io.SeekStart); err != nil {
			return err
		}
		n, err := io.Copy(out, io.LimitReader(in, length)) // copy_file_range inside the kernel
		if err == nil && n < length {
			err = fmt.Errorf("%d of %d bytes at %d: file got shorter", n, length, off)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
}

// DataExtents calls visit for each stretch of the first size bytes of a file that
// is not a hole, in order. A file system without holes has one stretch. It moves
// the file's position.
func DataExtents(f *os.File, size int64, visit func(off, length int64) error) error {
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("find data in %s at %d: %w", f.Name(), off, err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find hole in %s at %d: %w", f.Name(), start, err)
		}
		start, end = min(start, size), min(end, size)
		if start < end {
			if err := visit(start, end-start); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}
