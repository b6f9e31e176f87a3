package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
)

// ranges fetches the blocks that are wanted, several ranges at a time.
func (j *Job) ranges(ctx context.Context, file *blockindex.File, plan *blockindex.Plan, to io.WriterAt, total int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := j.step(Fetching, file.Name, total)
	todo := make(chan blockindex.Range)
	var work sync.WaitGroup
	for range parallel {
		work.Go(func() {
			g := newGetter(j, file, to)
			for r := range todo {
				if err := g.get(ctx, r); err != nil {
					cancel(err)
					return
				}
				s.add(r.Size)
			}
		})
	}
	for r := range plan.Ranges(maxGap, maxRange) {
		select {
		case todo <- r:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	close(todo)
	work.Wait()
	return context.Cause(ctx)
}

// A getter fetches ranges one after the other, in memory that it uses again.
type getter struct {
	job     *Job
	file    *blockindex.File
	to      io.WriterAt
	packed  []byte
	content []byte
	unpack  *archive.Unpacker
	hasher  *blockindex.Hasher
}

func newGetter(j *Job, file *blockindex.File, to io.WriterAt) *getter {
	return &getter{
		job: j, file: file, to: to, content: make([]byte, blockindex.MaxMemberBlocks*blockindex.BlockSize),
		unpack: archive.NewUnpacker(), hasher: blockindex.NewHasher(j.head.Release.Salt),
	}
}

// errDamaged says that what arrived is not what was signed.
var errDamaged = errors.New("what arrived is not what was signed")

// get fetches one range and writes what it holds. A range that arrives damaged
// is fetched once more, since something on the way may be broken.
func (g *getter) get(ctx context.Context, r blockindex.Range) error {
	err := g.try(ctx, r)
	if errors.Is(err, errDamaged) {
		g.job.note("%v; trying again", err)
		err = g.try(ctx, r)
	}
	return err
}

func (g *getter) try(ctx context.Context, r blockindex.Range) error {
	if int64(cap(g.packed)) < r.Size {
		g.packed = make([]byte, max(r.Size, maxRange))
	}
	b := g.packed[:r.Size]
	if err := g.job.read(ctx, b, r.Offset); err != nil {
		return err
	}
	for i := r.First; i < r.First+r.Members; i++ {
		_, size := g.file.Member(i)
		at, n := g.file.Content(i)
		content := g.content[:n]
		err := g.unpack.Member(content, b[:size])
		if err == nil {
			err = g.file.Check(i, content, g.hasher)
		}
		if err != nil {
			return fmt.Errorf("%s, bytes %d to %d: %w: %w", g.file.Name, at, at+int64(n)-1, errDamaged, err)
		}
		if _, err := g.to.WriteAt(content, at); err != nil {
			return fmt.Errorf("%s: write %d bytes at byte %d: %w", g.file.Name, n, at, err)
		}
		b = b[size:]
	}
	return nil
}

// read reads a part of the archive, all of it.
func (j *Job) read(ctx context.Context, b []byte, off int64) error {
	n, _, err := j.Server.Range(ctx, j.Archive, b, off, j.Found.Tag)
	j.meter.fetched.Add(int64(n))
	if errors.Is(err, io.EOF) && n == len(b) {
		err = nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s ends %d bytes early: it may be half uploaded; run this again later", j.Archive, len(b)-n)
	}
	return explain(err)
}
