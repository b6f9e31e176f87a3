package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// guard returns a body that is cut when less than MinSpeed arrives over a
// Window, and that keeps to the rate limit. Closing it frees what the request
// holds.
func (w *web) guard(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser) io.ReadCloser {
	g := &guarded{ctx: ctx, cancel: cancel, body: body, limit: w.limit, stop: make(chan struct{})}
	g.waiting.Store(true)
	go g.watch(w.MinSpeed, w.Window)
	return g
}

type guarded struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	body    io.ReadCloser
	limit   *limiter
	arrived atomic.Int64
	waiting atomic.Bool // for the reader or the rate limit, not for the server
	once    sync.Once
	stop    chan struct{}
}

// watch counts only windows all through which somebody waited for the server.
func (g *guarded) watch(speed int64, window time.Duration) {
	const parts = 10
	ticker := time.NewTicker(window / parts)
	defer ticker.Stop()
	ticks, before := 0, int64(0)
	for {
		select {
		case <-g.stop:
			return
		case <-g.ctx.Done():
			return
		case <-ticker.C:
		}
		if g.waiting.Load() {
			ticks, before = 0, g.arrived.Load()
			continue
		}
		if ticks++; ticks < parts {
			continue
		}
		now := g.arrived.Load()
		if float64(now-before) < float64(speed)*window.Seconds() {
			g.cancel(fmt.Errorf("%w: %d bytes in %s", ErrSlow, now-before, window))
			return
		}
		ticks, before = 0, now
	}
}

// Read implements io.Reader.
func (g *guarded) Read(p []byte) (int, error) {
	p = p[:min(len(p), g.limit.chunk)]
	g.waiting.Store(false)
	n, err := g.body.Read(p)
	g.waiting.Store(true)
	g.arrived.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(g.ctx); cause != nil {
			err = cause
		}
	}
	if limited := g.limit.take(g.ctx, n); limited != nil && err == nil {
		err = limited
	}
	return n, err
}

// Close implements io.Closer.
func (g *guarded) Close() error {
	g.once.Do(func() { close(g.stop) })
	g.cancel(nil)
	return g.body.Close()
}

// A limiter spreads what all transfers together take over time.
type limiter struct {
	rate  int64 // bytes a second; 0: none
	chunk int   // bytes that are read at once
	mu    sync.Mutex
	free  time.Time // when all that was taken is paid for
}

func newLimiter(rate int64) *limiter {
	l := &limiter{rate: rate, chunk: 64 << 10}
	if rate > 0 {
		l.chunk = int(min(max(rate/8, 128), 64<<10))
	}
	return l
}

// take waits until n more bytes keep to the rate.
func (l *limiter) take(ctx context.Context, n int) error {
	if l.rate == 0 || n == 0 {
		return nil
	}
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	wait := l.free.Sub(now)
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(wait):
		return nil
	}
}
