package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"halogenos.internal/boot/release"
)

// Write writes the archive of the release that description, the bytes of its
// release.json, describes. signature is release.json's, or empty for a release
// that is not signed. open returns the content of each file in turn; a file
// that differs from its description fails the write.
func Write(ctx context.Context, w io.Writer, description, signature []byte, open func(release.File) (io.ReadCloser, error), o Options) error {
	r, err := release.Parse(description)
	if err != nil {
		return err
	}
	if len(signature) > MaxSignature {
		return fmt.Errorf("signature has %d bytes, more than %d", len(signature), MaxSignature)
	}
	if r.SourceDate > maxDate {
		return fmt.Errorf("source date %d is more than a tar header holds", r.SourceDate)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := newPipeline(ctx, o.workers(), packJobs)
	var wrote sync.WaitGroup
	wrote.Go(func() {
		if err := p.drain(w); err != nil {
			cancel(err)
		}
	})
	err = produce(p, r, description, signature, open, o.memberSize())
	p.end()
	if err != nil {
		cancel(err)
	}
	wrote.Wait()
	p.wait()
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("write archive: %w", cause)
	}
	return nil
}

// produce cuts the archive into members.
func produce(p *pipeline, r *release.Release, description, signature []byte, open func(release.File) (io.ReadCloser, error), size int) error {
	var head bytes.Buffer
	small := func(name string, content []byte) {
		h := header(name, int64(len(content)), r.SourceDate)
		head.Write(h[:])
		head.Write(content)
		head.Write(make([]byte, padding(int64(len(content)))))
	}
	small(release.ManifestFile, description)
	if len(signature) > 0 {
		small(SignatureFile, signature)
	}
	for _, f := range r.Files {
		h := header(f.Name, f.Size, r.SourceDate)
		head.Write(h[:])
		if err := p.store(head.Bytes()); err != nil {
			return err
		}
		if err := produceFile(p, f, open, size); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		head.Reset()
		head.Write(make([]byte, padding(f.Size)))
	}
	head.Write(make([]byte, trailer))
	return p.store(head.Bytes())
}

func produceFile(p *pipeline, f release.File, open func(release.File) (io.ReadCloser, error), size int) (err error) {
	content, err := open(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	sum := sha256.New()
	for left := f.Size; left > 0; {
		j, err := p.job()
		if err != nil {
			return err
		}
		j.plain = grow(j.plain, int(min(int64(size), left)))
		if _, err := io.ReadFull(content, j.plain); err != nil {
			return fmt.Errorf("read the last %d of %d bytes: %w", left, f.Size, err)
		}
		sum.Write(j.plain)
		left -= int64(len(j.plain))
		p.submit(j)
	}
	var more [1]byte
	if n, err := io.ReadFull(content, more[:]); n > 0 {
		return fmt.Errorf("has more than the %d bytes that %s says", f.Size, release.ManifestFile)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), f.SHA256) {
		return fmt.Errorf("has another SHA-256 than %s says", release.ManifestFile)
	}
	return nil
}

// grow returns a slice of n bytes, in b's memory where that is enough.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
