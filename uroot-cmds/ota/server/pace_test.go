package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A drip gives n bytes every so often, and cuts the connection after some of them.
type drip struct {
	ctx      context.Context
	n        int
	every    time.Duration
	size, at int64
	cut      int64 // 0: never
}

func (d *drip) Read(p []byte) (int, error) {
	switch {
	case d.at == d.size:
		return 0, io.EOF
	case d.cut > 0 && d.at >= d.cut:
		return 0, io.ErrUnexpectedEOF
	}
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(d.every):
	}
	n := int(min(int64(len(p)), int64(d.n), d.size-d.at))
	clear(p[:n])
	d.at += int64(n)
	return n, nil
}

func (d *drip) Close() error { return nil }

// RoundTrip sends the part that is asked for, or a file of 1 GiB.
func (d drip) RoundTrip(r *http.Request) (*http.Response, error) {
	const size = 1 << 30
	d.ctx, d.size = r.Context(), size
	a := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: size, Body: &d, Request: r}
	var first, last int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil {
		d.size = last - first + 1
		a.StatusCode, a.ContentLength = http.StatusPartialContent, d.size
		a.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
	}
	return a, nil
}

// dripping is a transport to a server that drips, by the clock of the test's bubble.
func dripping(t *testing.T, d drip, o Options) Transport {
	t.Helper()
	w, err := newWeb("https://releases.example.org/x", o)
	if err != nil {
		t.Fatal(err)
	}
	w.client.Transport = d
	return w
}

// A server just above the least speed of a connection is given up as well, over
// however many connections. FAULTS 8
func TestCrawlingServer(t *testing.T) {
	for name, d := range map[string]drip{
		"250 bytes a second":           {n: 250, every: time.Second},
		"a cut every 8 KiB":            {n: 250, every: time.Second, cut: 8 << 10},
		"a burst, a cut and a silence": {n: 8 << 10, every: 25 * time.Second, cut: 8 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				body, _, err := dripping(t, d, Options{}).Open(t.Context(), "42.tar.gz")
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				n, err := io.Copy(io.Discard, body)
				if !errors.Is(err, ErrSlow) || n == 0 {
					t.Errorf("whole: %d bytes, %v", n, err)
				}
				wants(t, err, "server is too slow: https://releases.example.org/x sent ")
				wants(t, err, " KiB in 10 minutes, and has to send 1024 KiB")
				if took := time.Since(start); took > 11*time.Minute {
					t.Errorf("given up after %s", took)
				}
			})
			// Parts that are asked for at the same time are one server's.
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				tr := dripping(t, d, Options{})
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						_, _, err := tr.Range(t.Context(), "42.tar.gz", io.Discard, int64(i)<<20, 1<<20)
						wants(t, err, "has to send 1024 KiB")
					})
				}
				wg.Wait()
				if took := time.Since(start); took > 11*time.Minute {
					t.Errorf("given up after %s", took)
				}
			})
		})
	}
}

// What is slow for another reason than the server's is gone on with: a modem, the
// owner's rate limit, a slow disk.
func TestSlowButGettingOn(t *testing.T) {
	const n = 4 << 20
	for name, c := range map[string]struct {
		drip
		Options
		write time.Duration // for each piece
	}{
		"modem":      {drip: drip{n: 2000, every: time.Second}},
		"rate limit": {drip: drip{n: 64 << 10, every: time.Millisecond}, Options: Options{RateLimit: 1 << 10}},
		"both":       {drip: drip{n: 128, every: 200 * time.Millisecond}, Options: Options{RateLimit: 1 << 10}},
		"slow disk":  {drip: drip{n: 4 << 10, every: time.Second}, write: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := writerFunc(func(p []byte) (int, error) { time.Sleep(c.write); return len(p), nil })
				if got, _, err := dripping(t, c.drip, c.Options).Range(t.Context(), "42.tar.gz", w, 0, n); err != nil || got != n {
					t.Errorf("%d bytes, %v", got, err)
				}
			})
		})
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A file that can be done without uses up no patience with the others.
func TestOptional(t *testing.T) {
	all, err := newWeb("https://example.org", Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := Optional(all).(*web)
	if o.Attempts != optionalAttempts || all.Attempts <= optionalAttempts {
		t.Errorf("%d attempts, of otherwise %d", o.Attempts, all.Attempts)
	}
	o.progress.waited = progressWindow
	o.progress.wait()
	if err := o.progress.got(0); !errors.Is(err, ErrSlow) {
		t.Errorf("after the window: %v", err)
	}
	all.progress.wait()
	if err := all.progress.got(0); err != nil {
		t.Errorf("the others: %v", err)
	}
	if once, err := newWeb("https://example.org", Options{Attempts: 1}); err != nil || Optional(once).(*web).Attempts != 1 {
		t.Errorf("more attempts than otherwise, %v", err)
	}
	d, err := OpenDirectory(t.TempDir())
	if err != nil || Optional(d) != Transport(d) {
		t.Errorf("of a directory: %v", err)
	}
}
