package archive

import (
	"context"
	"slices"
	"sync"

	"halogenos.internal/boot/blockindex"
)

// A job is what is on its way, packed and unpacked: one member where it is
// unpacked, and some members of a file where they are packed.
type job struct {
	plain, packed []byte
	err           error
	done          chan struct{} // closed when a worker is through with it

	// Where members are packed:
	file   int               // which file they are part of
	size   int               // bytes of plain in each, but for the last
	sizes  []int             // bytes of packed that each has
	hashes []blockindex.Hash // of the blocks of plain
}

// A pipeline takes jobs in order, has them done by workers in any order, and
// returns them in the order they came. As many jobs as it starts with are
// used again and again: its memory does not grow.
type pipeline struct {
	ctx     context.Context
	free    chan *job
	work    chan *job
	ordered chan *job
	workers sync.WaitGroup
}

// newPipeline starts workers, each of which runs do until there is no more
// work. The pipeline stops when ctx does.
func newPipeline(ctx context.Context, workers int, do func(<-chan *job)) *pipeline {
	depth := workers + 2 // one is being read or written at either end
	p := &pipeline{ctx: ctx, free: make(chan *job, depth), work: make(chan *job, depth), ordered: make(chan *job, depth)}
	for range depth {
		p.free <- new(job)
	}
	for range workers {
		p.workers.Go(func() { do(p.work) })
	}
	return p
}

// job waits for a job that is free.
func (p *pipeline) job() (*job, error) {
	select {
	case j := <-p.free:
		*j = job{plain: j.plain, packed: j.packed, sizes: j.sizes[:0], hashes: j.hashes[:0], done: make(chan struct{})}
		return j, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// submit hands a job over. There is room for every job that there is.
func (p *pipeline) submit(j *job) {
	p.ordered <- j
	p.work <- j
}

// fail puts an error in a job's place.
func (p *pipeline) fail(j *job, err error) {
	j.err = err
	close(j.done)
	p.ordered <- j
}

// end says that no more jobs are to come.
func (p *pipeline) end() {
	close(p.work)
	close(p.ordered)
}

// wait returns when no worker runs any more.
func (p *pipeline) wait() { p.workers.Wait() }

// next returns the next job in order when it is done, and nil after the last.
// The caller gives it back with release.
func (p *pipeline) next() (*job, error) {
	var j *job
	select {
	case next, ok := <-p.ordered:
		if !ok {
			return nil, nil
		}
		j = next
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
	<-j.done // workers always finish what they have begun
	return j, j.err
}

func (p *pipeline) release(j *job) { p.free <- j }

// drain gives the jobs to take, in order, when they are done.
func (p *pipeline) drain(take func(*job) error) error {
	for {
		j, err := p.next()
		if j == nil || err != nil {
			return err
		}
		if err := take(j); err != nil {
			return err
		}
		p.release(j)
	}
}

// packJobs returns the work of a worker that packs blocks and hashes them with
// the salt.
func packJobs(salt []byte) func(<-chan *job) {
	return func(work <-chan *job) {
		pack, err := newPacker()
		hasher := blockindex.NewHasher(salt)
		for j := range work {
			j.packed, j.err = j.packed[:0], err
			for plain := range slices.Chunk(j.plain, j.size) {
				if j.err != nil {
					break
				}
				for _, sum := range hasher.All(plain) {
					j.hashes = append(j.hashes, sum)
				}
				before := len(j.packed)
				j.packed, j.err = pack.member(j.packed, plain)
				j.sizes = append(j.sizes, len(j.packed)-before)
			}
			close(j.done)
		}
	}
}

// unpackJobs is the work of a worker that unpacks.
func unpackJobs(work <-chan *job) {
	unpack := NewUnpacker()
	for j := range work {
		j.err = unpack.unpack(j.plain, j.packed)
		close(j.done)
	}
}
