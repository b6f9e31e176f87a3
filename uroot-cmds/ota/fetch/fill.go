package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blockindex"
)

// meter adds up what arrives.
type meter struct{ fetched atomic.Int64 }

// step is one phase of one file under way.
type step struct {
	job   *Job
	phase Phase
	file  string
	total int64
	done  atomic.Int64
}

func (j *Job) step(phase Phase, file string, total int64) *step {
	s := &step{job: j, phase: phase, file: file, total: total}
	s.add(0)
	return s
}

// add reports n more bytes.
func (s *step) add(n int64) {
	p := Progress{s.phase, s.file, s.done.Add(n), s.total, s.job.meter.fetched.Load()}
	if s.job.Progress != nil {
		s.job.Progress(p)
	}
}

func (j *Job) note(format string, args ...any) {
	if j.Note != nil {
		j.Note(fmt.Sprintf(format, args...))
	}
}

// A source is where blocks of a file can be copied from.
type source struct {
	r    io.ReaderAt
	have func(ctx context.Context, p *blockindex.Plan) error
}

// fill makes all blocks of a file right where they belong, as far as what is
// read and written is what it seems to be: the caller checks the whole. online
// is whether the server may be asked for the blocks that the machine lacks;
// without it the error is errLacking.
//
// Nothing has to be written in any order, since no record says what is done:
// cut at any point, the next call finds by their digests which blocks have
// survived.
func (j *Job) fill(ctx context.Context, name string, to block.Device, from *source, online bool) error {
	file, ok := j.index.File(name)
	if !ok {
		return fmt.Errorf("block index has no file %s", name)
	}
	dropCache(to)
	var part blockindex.Part
	var err error
	for n := 0; n < file.Parts() && err == nil; n++ {
		if err = part.Load(file, n); err == nil {
			err = j.fillPart(ctx, &part, to, from, online)
		}
	}
	if syncErr := to.Sync(); syncErr != nil && err == nil {
		err = fmt.Errorf("flush %s: %w", name, syncErr)
	}
	return err
}

// fillPart does so with a part of a file, and does not flush.
func (j *Job) fillPart(ctx context.Context, part *blockindex.Part, to block.Device, from *source, online bool) error {
	name := part.File.Name
	plan, err := j.plan(ctx, part, to)
	if err != nil {
		return err
	}
	if from != nil {
		if err := from.have(ctx, plan); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			j.note("%s: not all is copied that the running system has: %v", part, err)
		}
		if err := j.copy(ctx, part, plan, to, from); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := j.zeros(plan, to); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if online && from != nil {
		if err := j.patch(ctx, part, plan, to); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	cost := plan.Cost(maxGap, maxRange)
	switch {
	case cost.Wanted > 0 && !online:
		return errLacking
	case cost.Wanted > 0:
		return j.ranges(ctx, part, plan, to, cost.Fetched)
	}
	return nil
}

// errLacking says that the machine does not have all blocks.
var errLacking = errors.New("not all blocks are here")

// plan finds out what is in place.
func (j *Job) plan(ctx context.Context, part *blockindex.Part, to io.ReaderAt) (*blockindex.Plan, error) {
	salt := j.head.Release.Salt
	plan := blockindex.NewPlan(part, salt)
	start, end := part.ByteSpan()
	if err := plan.InPlace(ctx, &counted{to, j.step(Checking, part.String(), end-start)}, salt); err != nil {
		return nil, fmt.Errorf("%s: look at what is there: %w", part, err)
	}
	cost := plan.Cost(0, maxRange)
	kept := cost.Blocks - cost.Wanted
	for _, blocks := range plan.Zeros() {
		kept -= blocks
	}
	j.result.Kept += int64(kept) * blockindex.BlockSize
	return plan, nil
}

// dropCache makes the next reads see the medium, where there is one. What is
// not flushed stays.
func dropCache(r any) {
	if f, ok := r.(*os.File); ok {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: it may not be taken
	}
}

// startWriting has what was written go to the medium now, where there is one, so
// that it goes there while more arrives. It does not wait and promises nothing.
func startWriting(w any, off, n int64) {
	if f, ok := w.(*os.File); ok {
		_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE) // the flush is what counts
	}
}

// counted reports what is read.
type counted struct {
	r io.ReaderAt
	s *step
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.s.add(int64(n))
	return n, err
}

// zeros writes the blocks that hold nothing.
func (j *Job) zeros(plan *blockindex.Plan, to io.WriterAt) error {
	for first, blocks := range plan.Zeros() {
		if err := block.Zero(to, int64(first)*blockindex.BlockSize, int64(blocks)*blockindex.BlockSize); err != nil {
			return err
		}
	}
	return nil
}

// copyAtOnce is how many blocks are copied at a time.
const copyAtOnce = 32

// copy takes the blocks that the machine has. One that is not what its place in
// the source promised is left to the server.
func (j *Job) copy(ctx context.Context, part *blockindex.Part, plan *blockindex.Plan, to io.WriterAt, from *source) error {
	cost := plan.Cost(0, maxRange)
	if cost.Copied == 0 {
		return nil
	}
	s := j.step(Copying, part.String(), int64(cost.Copied)*blockindex.BlockSize)
	h := blockindex.NewHasher(j.head.Release.Salt)
	buffer := make([]byte, copyAtOnce*blockindex.BlockSize)
	for run := range plan.Copies() {
		for done := 0; done < run.Blocks; done += copyAtOnce {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n := min(copyAtOnce, run.Blocks-done)
			b := buffer[:n*blockindex.BlockSize]
			// A source that cannot be read does not have what it promised.
			got, _ := from.r.ReadAt(b, int64(run.From+done)*blockindex.BlockSize)
			for i, sum := range h.All(b) {
				if (i+1)*blockindex.BlockSize > got || sum != part.Hash(run.To+done+i) {
					plan.Refuse(run.To + done + i)
					continue
				}
				if err := writeBlock(part.File, run.To+done+i, b[i*blockindex.BlockSize:][:blockindex.BlockSize], to); err != nil {
					return err
				}
				j.result.Copied += blockindex.BlockSize
			}
			s.add(int64(len(b)))
		}
	}
	return nil
}

// writeBlock writes a block, up to the file's end.
func writeBlock(file *blockindex.File, block int, b []byte, to io.WriterAt) error {
	at := int64(block) * blockindex.BlockSize
	b = b[:min(int64(len(b)), file.Size-at)]
	if _, err := to.WriteAt(b, at); err != nil {
		return fmt.Errorf("write %d bytes at byte %d: %w", len(b), at, err)
	}
	return nil
}
