// Package bounded reads what may be larger than it should be: a file that somebody else
// wrote, or what a server sends.
package bounded

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// ErrTooLarge is for what has more bytes than it may have.
var ErrTooLarge = errors.New("too large")

// Read reads to the end, and refuses more than limit bytes with ErrTooLarge. With an error
// it returns what was read before, of at most limit bytes.
func Read(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(b)) > limit {
		return b[:limit], fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return b, err
}

// File reads a file of at most limit bytes. The error names it.
func File(files fs.FS, name string, limit int64) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Named(f, name, limit)
}

// Named is Read of an open file. The error names it.
func Named(r io.Reader, name string, limit int64) ([]byte, error) {
	b, err := Read(r, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}
