package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/manifest"
)

// resumed is a file that is read from its start, over as many connections as it
// takes.
type resumed struct {
	w    *web
	ctx  context.Context
	name string
	size int64 // -1: not known, and nothing is asked for again
	at   int64
	body io.ReadCloser
	from int64 // where the connection under way began
	left int   // attempts
	held error
}

// Read implements io.Reader.
func (r *resumed) Read(p []byte) (int, error) {
	for {
		if r.held != nil {
			return 0, r.held
		}
		n, err := r.body.Read(p)
		if r.at == 0 && manifest.IsPage(p[:n]) {
			r.held = fmt.Errorf("%s: %w: it is a web page: %w", r.name, errAnswer, manifest.ErrPage)
			continue
		}
		r.at += int64(n)
		switch {
		case err == nil, errors.Is(err, io.EOF) && (r.size < 0 || r.at == r.size):
			return n, err
		case !r.again(noEOF(err)):
			r.held = err // what was wrong first, which the caller knows
		}
		if n > 0 {
			return n, nil
		}
	}
}

// again asks for the rest after an error, if that is worth it.
func (r *resumed) again(err error) bool {
	if r.left--; enough(r.at-r.from, r.size-r.from) && !errors.Is(err, ErrSlow) {
		r.left = r.w.Attempts
	}
	if r.size < 0 || r.at >= r.size || r.left <= 0 || !temporary(err) || r.ctx.Err() != nil {
		return false
	}
	_ = r.body.Close() // it has failed
	again := r.w.retry(r.ctx, r.name, func() (bool, error) {
		answer, _, err := r.w.ask(r.ctx, r.name, r.at, r.size-r.at)
		if err == nil {
			r.body, r.from = answer.Body, r.at
		}
		return false, err
	})
	return again == nil
}

// Close implements io.Closer.
func (r *resumed) Close() error { return r.body.Close() }

// A sink counts what is written, and keeps its error apart from the server's.
type sink struct {
	w   io.Writer
	n   int64
	err error
}

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	s.err = err
	return n, err
}
