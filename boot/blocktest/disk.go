// Package blocktest is a disk in memory for tests: it records what is written
// to it, fails when told to, and rebuilds every state that a power cut could
// have left. Only tests import it.
//
// It refuses to be kind: bytes that were never written can read as garbage,
// writes between two flushes land in any combination, and a write of several
// sectors can be torn between any two of them.
package blocktest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"sync"
)

// pageSize is the granularity of storage in bytes, not of tearing.
const pageSize = 4096

type page [pageSize]byte

// Fill is the value of every byte that was never written.
type Fill byte

const (
	Zero    Fill = 0x00 // a fresh image file
	Hostile Fill = 0xaa // a discarded or second-hand disk
)

// Disk is a sparse disk in memory, a [halogenos.internal/boot/block.Device]
// whose Sync does nothing. It is safe for concurrent use.
type Disk struct {
	mu    sync.RWMutex
	size  int64
	pages map[int64]*page
	// lower is the disk that lies under a page that was not written here; where there is
	// none, below fills p with what does.
	lower *Disk
	below func(index int64, p *page)
}

// New returns a disk of size bytes whose bytes all have the value fill.
func New(size int64, fill Fill) *Disk {
	var blank page
	copy(blank[:], bytes.Repeat([]byte{byte(fill)}, pageSize))
	return &Disk{size: size, pages: map[int64]*page{}, below: func(_ int64, p *page) { *p = blank }}
}

// Overlay returns a disk that starts out as d and keeps what is written to it
// to itself. It costs no memory until then. d must not change while the
// overlay is in use.
func (d *Disk) Overlay() *Disk {
	return &Disk{size: d.size, pages: map[int64]*page{}, lower: d}
}

// Clone returns an overlay over what d is over, with its own copy of what was
// written to d: d may change afterwards.
func (d *Disk) Clone() *Disk {
	d.mu.RLock()
	defer d.mu.RUnlock()
	pages := maps.Clone(d.pages)
	for i, p := range pages {
		c := *p
		pages[i] = &c
	}
	return &Disk{size: d.size, pages: pages, lower: d.lower, below: d.below}
}

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// copyPage copies what page index holds from a byte of it on, until b is full.
func (d *Disk) copyPage(index, from int64, b []byte) {
	for {
		d.mu.RLock()
		have := d.pages[index]
		if have != nil {
			copy(b, have[from:])
		}
		d.mu.RUnlock()
		if have != nil {
			return
		}
		if d.lower == nil {
			if from == 0 && len(b) == pageSize {
				d.below(index, (*page)(b))
				return
			}
			var p page
			d.below(index, &p)
			copy(b, p[from:])
			return
		}
		d = d.lower
	}
}

// ReadAt implements [io.ReaderAt].
func (d *Disk) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read of %d bytes at byte %d", len(b), off)
	}
	n := 0
	for n < len(b) && off < d.size {
		inPage := off % pageSize
		c := int(min(int64(len(b)-n), pageSize-inPage, d.size-off))
		d.copyPage(off/pageSize, inPage, b[n:n+c])
		n, off = n+c, off+int64(c)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements [io.WriterAt]. A write that does not fit is refused whole.
func (d *Disk) WriteAt(b []byte, off int64) (int, error) {
	if err := d.bounds(b, off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := 0; n < len(b); {
		at := off + int64(n)
		index, inPage := at/pageSize, at%pageSize
		p := d.pages[index]
		if p == nil {
			p = new(page)
			switch whole := inPage == 0 && len(b)-n >= pageSize; {
			case whole: // of what lies below nothing is left
			case d.lower != nil:
				d.lower.copyPage(index, 0, p[:])
			default:
				d.below(index, p)
			}
			d.pages[index] = p
		}
		n += copy(p[inPage:], b[n:])
	}
	return len(b), nil
}

func (d *Disk) bounds(b []byte, off int64) error {
	if off < 0 || off > d.size || int64(len(b)) > d.size-off {
		return fmt.Errorf("write of %d bytes at byte %d: the disk has %d", len(b), off, d.size)
	}
	return nil
}

// Sync implements [halogenos.internal/boot/block.Device].
func (d *Disk) Sync() error { return nil }
