// Package block is the seam between the packages that lay out a disk and
// whatever holds its bytes: a block device on the machine, an image file in
// the builder, a recorded disk in a test.
//
// It refuses to know more than that: no discovery, no partition numbers, no
// caching, and no operation without an explicit byte offset. Nothing here may
// reach past the bounds it was given.
package block

import (
	"errors"
	"fmt"
	"io"
)

// Device is a disk or a part of one. Offsets and lengths are bytes; the medium
// below may want them to be multiples of its sector size, so writers keep to
// whole sectors.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns nil once every WriteAt that returned before it was called
	// survives a power cut. Between two calls writes may land in any order, in
	// part, or not at all. After an error nothing is known about the writes
	// since the last successful call.
	Sync() error
}

// ErrOutOfBounds is wrapped by errors about access outside a Section.
var ErrOutOfBounds = errors.New("outside the section")

// Section is a part of a Device that cannot be left: the neighbours of a
// partition are safe from its writer.
type Section struct {
	device    Device
	off, size int64
}

// NewSection returns the size bytes of d from byte off on.
func NewSection(d Device, off, size int64) (*Section, error) {
	if off < 0 || size < 0 || off+size < off {
		return nil, fmt.Errorf("section of %d bytes at byte %d: not a range", size, off)
	}
	return &Section{device: d, off: off, size: size}, nil
}

// Size returns the section's length in bytes.
func (s *Section) Size() int64 { return s.size }

// ReadAt implements [io.ReaderAt]; it returns io.EOF at the section's end.
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at byte %d of a section of %d: %w", off, s.size, ErrOutOfBounds)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	if room := s.size - off; int64(len(p)) > room {
		n, err := s.device.ReadAt(p[:room], s.off+off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return s.device.ReadAt(p, s.off+off)
}

// WriteAt implements [io.WriterAt]. A write that does not fit is refused as a
// whole with ErrOutOfBounds: half of it would be worse than nothing.
func (s *Section) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("write of %d bytes at byte %d of a section of %d: %w", len(p), off, s.size, ErrOutOfBounds)
	}
	return s.device.WriteAt(p, s.off+off)
}

// Sync implements [Device]. It flushes the whole device below.
func (s *Section) Sync() error { return s.device.Sync() }

// zeros is what Zero writes from; nothing ever writes to it.
var zeros [256 << 10]byte

// Zero overwrites n bytes of w from byte off on with zeros.
func Zero(w io.WriterAt, off, n int64) error {
	for n > 0 {
		chunk := min(n, int64(len(zeros)))
		if _, err := w.WriteAt(zeros[:chunk], off); err != nil {
			return fmt.Errorf("zero %d bytes at byte %d: %w", chunk, off, err)
		}
		off, n = off+chunk, n-chunk
	}
	return nil
}

// IsZero reports whether p holds nothing but zero bytes.
func IsZero(p []byte) bool {
	for len(p) > 0 {
		chunk := min(len(p), len(zeros))
		if string(p[:chunk]) != string(zeros[:chunk]) {
			return false
		}
		p = p[chunk:]
	}
	return true
}
