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
	g := &guarded{ctx: ctx, cancel: cancel, body: body, limit: w.limit, progress: w.progress, stop: make(chan struct{})}
	g.waiting.Store(true)
	go g.watch(w.MinSpeed, w.Window)
	return g
}

type guarded struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	body     io.ReadCloser
	limit    *limiter
	progress *progress
	arrived  atomic.Int64
	waiting  atomic.Bool // for the reader or the rate limit, not for the server
	once     sync.Once
	stop     chan struct{}
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
	g.progress.wait()
	n, err := g.body.Read(p)
	tooSlow := g.progress.got(n)
	g.waiting.Store(true)
	g.arrived.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(g.ctx); cause != nil {
			err = cause
		}
	}
	if err == nil {
		err = tooSlow
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

const (
	// leastProgress is what has to arrive in each progressWindow, in bytes: a modem's
	// pace. MinSpeed is what a connection may fall to for a while.
	leastProgress  = 1 << 20
	progressWindow = 10 * time.Minute // of waiting for the server
)

// A crawlError says that the server is not asked again.
type crawlError struct {
	server         string
	arrived, least int64 // bytes
	waited         time.Duration
}

func (e *crawlError) Error() string {
	return fmt.Sprintf("%v: %s sent %d KiB in %d minutes, and has to send %d KiB", ErrSlow, e.server, e.arrived>>10, e.waited/time.Minute, e.least>>10)
}

func (e *crawlError) Unwrap() error { return ErrSlow }

// A progress gives up a server that gets on too slowly over all its connections and
// all attempts: one that stays just above MinSpeed would hold the machine's lock for
// days. Time in which nobody waits for the server does not count.
type progress struct {
	server  string
	least   int64 // bytes in a window
	mu      sync.Mutex
	waiting int           // how many wait for the server
	counted time.Time     // until when waited counts
	waited  time.Duration // of this window
	arrived int64         // likewise, in bytes
	err     error         // for good
}

func newProgress(server string, rate int64) *progress {
	p := &progress{server: server, least: leastProgress}
	if rate > 0 { // some of that time others wait for the rate limit
		p.least = min(p.least, rate*int64(progressWindow/time.Second)/4)
	}
	return p
}

// wait says that somebody begins to wait for the server; got says that they have
// stopped.
func (p *progress) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting++; p.waiting == 1 {
		p.counted = time.Now()
	}
}

// got takes what arrived, in bytes, and returns an error when the server is given up.
func (p *progress) got(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.waiting--
	p.waited, p.counted = p.waited+now.Sub(p.counted), now
	p.arrived += int64(n)
	if p.err != nil || p.waited < progressWindow {
		return p.err
	}
	if p.arrived < p.least {
		p.err = &crawlError{p.server, p.arrived, p.least, p.waited}
	}
	p.waited, p.arrived = 0, 0
	return p.err
}
