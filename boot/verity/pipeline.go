package verity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"halogenos.internal/boot/internal/sha256pair"
)

const (
	// chunkSize is what one hash block covers: 512 KiB.
	chunkSize = fanOut * BlockSize
	// maxWorkers bounds the memory on machines with very many cores, long
	// after the disk has become what everything waits for.
	maxWorkers = 16
)

// chunk is the unit of work: the blocks below one hash block.
type chunk struct {
	index  uint64
	blocks []byte          // the blocks below, as read
	above  [BlockSize]byte // the hash block: computed, or read to be compared with
	digest Root            // of above, where computed
	err    error
	done   chan struct{}
}

// pass runs work over the chunks of count blocks on all cores, and collect
// over the results, in order, on the caller's goroutine. It returns when
// nothing of it runs any more; the first error in the order of the chunks is
// the one returned.
func pass(ctx context.Context, count uint64, work func(*hasher, *chunk), collect func(*chunk) error, salt []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	chunks := (count + fanOut - 1) / fanOut
	workers := min(runtime.GOMAXPROCS(0), maxWorkers, int(min(chunks, maxWorkers)))

	// A fixed set of chunks circulates, which is what bounds the memory:
	// free -> ordered (to collect) and todo (to a worker) -> free.
	inFlight := workers + 2
	free := make(chan *chunk, inFlight)
	todo := make(chan *chunk, inFlight)
	ordered := make(chan *chunk, inFlight)
	for range inFlight {
		free <- &chunk{blocks: make([]byte, 0, int(min(count, fanOut))*BlockSize)}
	}
	go deal(ctx, count, free, todo, ordered)
	for range workers {
		go func() {
			h := newHasher(salt)
			for c := range todo {
				if c.err = ctx.Err(); c.err == nil {
					work(h, c)
				}
				close(c.done)
			}
		}()
	}

	var failed error
	var collected uint64
	for c := range ordered {
		<-c.done
		if failed == nil {
			if failed = c.err; failed == nil {
				failed = ctx.Err()
			}
			if failed == nil {
				failed = collect(c)
				collected++
			}
			if failed != nil {
				cancel() // the rest is drained, unworked
			}
		}
		free <- c
	}
	// A cancellation between two chunks leaves no chunk that carries it.
	if failed == nil && collected != chunks {
		failed = ctx.Err()
	}
	cancel()
	return failed
}

// deal hands out the chunks of count blocks, in order, until the context ends.
// It never blocks on todo or ordered: they have room for every chunk there is.
func deal(ctx context.Context, count uint64, free <-chan *chunk, todo, ordered chan<- *chunk) {
	defer close(ordered)
	defer close(todo)
	for i := range (count + fanOut - 1) / fanOut {
		select {
		case <-ctx.Done():
			return
		case c := <-free:
			n := min(count-i*fanOut, fanOut)
			c.index, c.blocks = i, c.blocks[:n*BlockSize]
			c.err, c.done = nil, make(chan struct{})
			ordered <- c
			todo <- c
		}
	}
}

// hasher computes the digest of blocks under one salt.
type hasher struct{ h *sha256pair.Hasher }

func newHasher(salt []byte) *hasher { return &hasher{sha256pair.New(salt, BlockSize)} }

// sum writes the digest of the salt and the block (hash type 1) to dst.
func (h *hasher) sum(dst *Root, block []byte) { h.h.Sum((*[digestSize]byte)(dst), block) }

// sums writes the digests of all blocks to dst and zeros behind them, which
// makes dst a hash block.
func (h *hasher) sums(dst *[BlockSize]byte, blocks []byte) {
	h.h.SumAll(dst[:], blocks)
	clear(dst[len(blocks)/BlockSize*digestSize:])
}

// readFull reads len(b) bytes at off. An early end is never io.EOF, which
// callers could take for a normal one.
func readFull(r io.ReaderAt, b []byte, off int64, what string) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("verity: read %s: %d of %d bytes at offset %d: %w", what, n, len(b), off, err)
}
