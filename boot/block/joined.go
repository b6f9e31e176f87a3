package block

import (
	"errors"
	"fmt"
	"io"
)

// Joined is sections one behind the other, such as the extents of a slot. No access leaves
// them.
type Joined struct {
	parts []*Section
	size  int64
}

// Join joins sections in that order.
func Join(parts ...*Section) *Joined {
	j := &Joined{parts: parts}
	for _, s := range parts {
		j.size += s.size
	}
	return j
}

// Size returns the length of all sections together in bytes.
func (j *Joined) Size() int64 { return j.size }

// ReadAt implements [io.ReaderAt]; it returns io.EOF at the end of the last section.
func (j *Joined) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at byte %d of joined sections of %d: %w", off, j.size, ErrOutOfBounds)
	}
	if off >= j.size {
		return 0, io.EOF
	}
	if room := j.size - off; int64(len(p)) > room {
		n, err = j.each(p[:room], off, (*Section).ReadAt)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return j.each(p, off, (*Section).ReadAt)
}

// WriteAt implements [io.WriterAt]. A write that does not fit is refused as a whole with
// ErrOutOfBounds.
func (j *Joined) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off > j.size || int64(len(p)) > j.size-off {
		return 0, fmt.Errorf("write of %d bytes at byte %d of joined sections of %d: %w", len(p), off, j.size, ErrOutOfBounds)
	}
	return j.each(p, off, (*Section).WriteAt)
}

// each does a part of an access that is within bounds in each section that it touches.
func (j *Joined) each(p []byte, off int64, do func(*Section, []byte, int64) (int, error)) (done int, err error) {
	for _, s := range j.parts {
		if off >= s.size {
			off -= s.size
			continue
		}
		part := p[done:]
		part = part[:min(int64(len(part)), s.size-off)]
		if len(part) == 0 {
			break
		}
		n, err := do(s, part, off)
		if done += n; err != nil {
			return done, err
		}
		off = 0
	}
	return done, nil
}

// Sync implements [Device].
func (j *Joined) Sync() error {
	var all []error
	for _, s := range j.parts {
		all = append(all, s.Sync())
	}
	return errors.Join(all...)
}
