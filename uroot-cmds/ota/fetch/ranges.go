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
func (j *Job) ranges(ctx context.Context, part *blockindex.Part, plan *blockindex.Plan, to io.WriterAt, total int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := j.step(Fetching, part.String(), total)
	todo := make(chan blockindex.Range)
	var work sync.WaitGroup
	for range parallel {
		work.Go(func() {
			g := newGetter(j, part, to, s)
			for r := range todo {
				if err := g.get(ctx, r); err != nil {
					cancel(err)
					return
				}
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

// A getter fetches ranges one after the other, in memory that it uses again. It
// takes the members as they arrive, so that of a range that is cut only the one
// under way is lost.
type getter struct {
	job     *Job
	part    *blockindex.Part
	to      io.WriterAt
	s       *step
	packed  []byte // of the member that is arriving
	content []byte
	unpack  *archive.Unpacker
	hasher  *blockindex.Hasher
	next    int // member
}

func newGetter(j *Job, part *blockindex.Part, to io.WriterAt, s *step) *getter {
	return &getter{
		job: j, part: part, to: to, s: s, content: make([]byte, blockindex.MaxMemberBlocks*blockindex.BlockSize),
		unpack: archive.NewUnpacker(), hasher: blockindex.NewHasher(j.head.Release.Salt),
	}
}

// errDamaged says that what arrived is not what was signed.
var errDamaged = errors.New("what arrived is not what was signed (run this again; if it stays so, tell the distributor)")

// get fetches one range and writes what it holds. Where a member arrives damaged,
// it and the rest are fetched once more, since something on the way may be
// broken.
func (g *getter) get(ctx context.Context, r blockindex.Range) error {
	g.next = r.First
	end := r.Offset + r.Size
	for try := 0; ; try++ {
		at, _ := g.part.Member(g.next)
		g.packed = g.packed[:0]
		err := g.job.read(ctx, g, at, end-at)
		if err == nil && g.next != r.First+r.Members {
			err = fmt.Errorf("%s: %d members arrived, want %d", g.part.File.Name, g.next-r.First, r.Members)
		}
		if err == nil {
			first, _ := g.part.File.Content(r.First)
			last, n := g.part.File.Content(g.next - 1)
			startWriting(g.to, first, last+int64(n)-first)
		}
		if !errors.Is(err, errDamaged) || try == 1 {
			return err
		}
		g.job.note("%v; trying again", err)
	}
}

// Write implements io.Writer: it takes what arrives of the range.
func (g *getter) Write(p []byte) (int, error) {
	taken := 0
	for taken < len(p) {
		_, size := g.part.Member(g.next)
		n := min(size-len(g.packed), len(p)-taken)
		g.packed = append(g.packed, p[taken:taken+n]...)
		taken += n
		if len(g.packed) < size {
			break
		}
		if err := g.member(g.next); err != nil {
			return taken, err
		}
		g.packed = g.packed[:0]
		g.next++
	}
	g.s.add(int64(taken))
	return taken, nil
}

// member takes one member that has arrived.
func (g *getter) member(i int) error {
	name := g.part.File.Name
	at, n := g.part.File.Content(i)
	content := g.content[:n]
	err := g.unpack.Member(content, g.packed)
	if err == nil {
		err = g.part.Check(i, content, g.hasher)
	}
	if err != nil {
		return fmt.Errorf("%s, bytes %d to %d: %w: %w", name, at, at+int64(n)-1, errDamaged, err)
	}
	if _, err := g.to.WriteAt(content, at); err != nil {
		return fmt.Errorf("%s: write %d bytes at byte %d: %w", name, n, at, err)
	}
	return nil
}

// read has a part of the archive written to w, all of it.
func (j *Job) read(ctx context.Context, w io.Writer, off, n int64) error {
	got, _, err := j.Server.Range(ctx, j.Archive, &metered{w, j}, off, n)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s ends %d bytes early: it may be half uploaded; run this again later", j.Archive, n-got)
	}
	return explain(err)
}

// metered counts what arrives.
type metered struct {
	w io.Writer
	j *Job
}

// Write implements io.Writer.
func (m *metered) Write(p []byte) (int, error) {
	m.j.meter.fetched.Add(int64(len(p)))
	return m.w.Write(p)
}
