package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// A Measured says what Run would fetch.
type Measured struct {
	// Bytes come from the server, as Result.Fetched counts them. A connection that is cut,
	// or a disk that does not keep or does not have what it says, adds to it.
	Bytes int64 `json:"bytes"`
	// Index is how much was fetched to find that out. It is kept and not fetched again.
	Index int64 `json:"index,omitempty"`
}

// Measure finds out how many bytes Run would fetch. It brings the block index, which
// stays in the directory, and writes nothing else: System may be open for reading alone.
func (j *Job) Measure(ctx context.Context) (Measured, error) {
	defer j.closeIndex()
	var m Measured
	err := j.begin()
	if err != nil {
		return m, err
	}
	if j.Found.Ranges {
		err = j.fetchIndex(ctx)
	} else if j.openIndex() != nil {
		m.Bytes = j.head.ArchiveSize() // whole, since there are no parts of it to be had
		return m, nil
	}
	m.Index = j.meter.fetched.Load()
	if err != nil {
		return m, err
	}
	if j.Extension != nil {
		m.Bytes, err = j.measure(ctx, j.large(), j.System, j.extensionSource())
		if !j.Found.Ranges && m.Bytes > 0 {
			m.Bytes = j.head.ArchiveSize()
		}
		return m, err
	}
	for _, name := range []string{release.UKIFile, release.BootManagerFile} {
		n, err := j.measureSmall(ctx, name)
		if err != nil {
			return m, err
		}
		m.Bytes += n
	}
	n, err := j.measure(ctx, release.ImageFile, j.System, j.imageSource(nil))
	m.Bytes += n + j.offered.bytes // which Run asks for again
	if !j.Found.Ranges && m.Bytes > 0 {
		m.Bytes = j.head.ArchiveSize()
	}
	return m, err
}

// measureSmall is measure for a file of the directory's.
func (j *Job) measureSmall(ctx context.Context, name string) (int64, error) {
	good, err := j.whole(name)
	if good || err != nil {
		return 0, err
	}
	f, err := j.Directory.Open(name + partial)
	if errors.Is(err, fs.ErrNotExist) {
		return j.measure(ctx, name, nil, j.runningUKI(name))
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return j.measure(ctx, name, extended{f}, j.runningUKI(name))
}

// measure adds up what fill would fetch of a file. to is what there is of it; nil is
// nothing.
func (j *Job) measure(ctx context.Context, name string, to io.ReaderAt, from *source) (int64, error) {
	file, ok := j.index.File(name)
	if !ok {
		return 0, fmt.Errorf("block index has no file %s", name)
	}
	if to != nil {
		dropCache(to)
	}
	var part blockindex.Part
	total := int64(0)
	for n := range file.Parts() {
		if err := part.Load(file, n); err != nil {
			return 0, err
		}
		plan := blockindex.NewPlan(&part, j.head.Release.Salt)
		if to != nil {
			var err error
			if plan, err = j.plan(ctx, &part, to); err != nil {
				return 0, err
			}
		}
		if from != nil {
			if err := from.have(ctx, plan); err != nil {
				if ctx.Err() != nil {
					return 0, context.Cause(ctx)
				}
				j.note("%s: not all is copied that the running system has: %v", &part, err)
			}
		}
		if from != nil {
			total += j.choosePatches(ctx, name, plan).Bytes
		}
		total += plan.Cost(maxGap, maxRange).Fetched
	}
	return total, nil
}

// extended is a file that goes on with zeros, as it does once its size is set.
type extended struct{ f *os.File }

// ReadAt implements io.ReaderAt.
func (e extended) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}
