package blocktest

import (
	"fmt"
	"slices"
	"sync"
)

// sectorSize is what a disk writes whole or not at all, in bytes. A disk of
// 4096-byte sectors is torn at 512 as well: harsher than it can be, never
// kinder.
const sectorSize = 512

// Op is one entry of the log: a write, or a sync when Data is nil.
type Op struct {
	Off  int64
	Data []byte // what reached the disk; a failed write has less than was asked for
	Err  error  // what the caller got
}

// IsSync reports whether the operation is a Sync.
func (o Op) IsSync() bool { return o.Data == nil }

// Fault makes operations fail. The k-th write or sync counts from 1, from the
// call of Inject on; zero is never.
type Fault struct {
	Write  int
	Sync   int
	Read   int
	Err    error
	Sticky bool // every later operation of that kind fails too
}

// Recorder is a disk that logs each write and sync. It is safe for concurrent
// use; concurrent writes are logged in the order in which they were applied.
type Recorder struct {
	base *Disk // as it was when recording began; never written to
	now  *Disk

	mu                   sync.Mutex
	log                  []Op
	fault                Fault
	writes, syncs, reads int // since Inject
}

// Record starts recording on top of base, which stays as it is: it can be
// recorded on again. It must not be written to meanwhile.
func Record(base *Disk) *Recorder {
	return &Recorder{base: base, now: base.Overlay()}
}

// Inject sets the fault and starts counting again.
func (r *Recorder) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault, r.writes, r.syncs, r.reads = f, 0, 0, 0
}

// Log returns the operations so far.
func (r *Recorder) Log() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Disk returns the disk as a reader without a power cut sees it now.
func (r *Recorder) Disk() *Disk { return r.now }

// Size returns the disk's size in bytes.
func (r *Recorder) Size() int64 { return r.now.size }

// due counts an operation and says whether it is to fail.
func (f Fault) due(count *int, at int) bool {
	*count++
	return at != 0 && (*count == at || f.Sticky && *count > at)
}

// ReadAt implements [io.ReaderAt].
func (r *Recorder) ReadAt(b []byte, off int64) (int, error) {
	r.mu.Lock()
	fail, err := r.fault.due(&r.reads, r.fault.Read), r.fault.Err
	r.mu.Unlock()
	if fail {
		return 0, fmt.Errorf("read of %d bytes at byte %d: %w", len(b), off, err)
	}
	return r.now.ReadAt(b, off)
}

// WriteAt implements [io.WriterAt]. A write that a fault hits still leaves the
// first half of its sectors on the disk.
func (r *Recorder) WriteAt(b []byte, off int64) (int, error) {
	if err := r.now.bounds(b, off); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	op := Op{Off: off, Data: slices.Clone(b)}
	if r.fault.due(&r.writes, r.fault.Write) {
		cuts := tears(off, len(b))
		if len(cuts) == 0 {
			op.Data = op.Data[:0]
		} else {
			op.Data = op.Data[:cuts[len(cuts)/2]]
		}
		op.Err = fmt.Errorf("write of %d bytes at byte %d: %w", len(b), off, r.fault.Err)
	}
	if _, err := r.now.WriteAt(op.Data, off); err != nil {
		return 0, err
	}
	r.log = append(r.log, op)
	return len(op.Data), op.Err
}

// Sync implements [halogenos.internal/boot/block.Device].
func (r *Recorder) Sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := Op{}
	if r.fault.due(&r.syncs, r.fault.Sync) {
		op.Err = fmt.Errorf("sync: %w", r.fault.Err)
	}
	r.log = append(r.log, op)
	return op.Err
}

// tears returns the lengths after which a write of n bytes at byte off can be
// cut: where it crosses from one sector into the next.
func tears(off int64, n int) []int {
	var at []int
	for cut := int(sectorSize - off%sectorSize); cut < n; cut += sectorSize {
		at = append(at, cut)
	}
	return at
}
