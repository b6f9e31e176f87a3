package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"halogenos.internal/boot/release"
)

// An Authenticate says why release.json is not to be believed. signature is
// empty when the archive has none. Nothing has been parsed before it is asked.
type Authenticate func(description, signature []byte) error

// A Reader unpacks an archive front to back, in constant memory. It belongs to
// one goroutine.
type Reader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	src    *bufio.Reader
	plain  []byte // unpacked and not read yet
	opened int64  // bytes unpacked so far

	release     *release.Release
	description []byte
	signature   []byte
	total       int64 // bytes of the whole tar

	pipe *pipeline // nil until the release is authenticated
	last *job      // what plain lies in
	file int       // index of the file that Next returns next
	body *body     // the file that is being read
	err  error     // what ended it
}

// maxUnpackers bounds the memory that reading takes, on a machine with many
// cores, to some 20 MiB.
const maxUnpackers = 8

// Open reads the archive's head, has it authenticated and only then parses it.
// src is read ahead; after Close at most the read that is under way goes on.
// The caller closes the reader.
func Open(ctx context.Context, src io.Reader, authenticate Authenticate, o Options) (*Reader, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &Reader{ctx: ctx, cancel: cancel, src: bufio.NewReaderSize(src, 64<<10)}
	if err := r.open(authenticate, min(o.workers(), maxUnpackers)); err != nil {
		cancel(err)
		return nil, err
	}
	return r, nil
}

func (r *Reader) open(authenticate Authenticate, workers int) error {
	h, err := r.header()
	if err != nil {
		return err
	}
	size, date, err := smallHeader(h, release.ManifestFile, release.MaxSize)
	if err != nil {
		return err
	}
	if r.description, err = r.small(size); err != nil {
		return fmt.Errorf("%s: %w", release.ManifestFile, err)
	}
	if h, err = r.header(); err != nil {
		return err
	}
	if bytes.HasPrefix(h[:], []byte(SignatureFile+"\x00")) {
		size, signed, err := smallHeader(h, SignatureFile, MaxSignature)
		if err != nil {
			return err
		}
		if r.signature, err = r.small(size); err != nil {
			return fmt.Errorf("%s: %w", SignatureFile, err)
		}
		if size == 0 || signed != date {
			return fmt.Errorf("%s is empty or of another date than %s", SignatureFile, release.ManifestFile)
		}
		if h, err = r.header(); err != nil {
			return err
		}
	}
	if len(r.plain) > 0 {
		return errors.New("gzip member holds a file's head and its content")
	}
	if err := authenticate(r.description, r.signature); err != nil {
		return err
	}
	if r.release, err = release.Parse(r.description); err != nil {
		return err
	}
	if first := r.release.Files[0]; date != r.release.SourceDate || h != header(first.Name, first.Size, date) {
		return fmt.Errorf("archive does not have %s, as %s describes it, where it belongs", first.Name, release.ManifestFile)
	}
	r.total = r.opened + trailer - block
	for _, f := range r.release.Files {
		r.total += block + f.Size + padding(f.Size)
	}
	r.pipe = newPipeline(r.ctx, workers, unpackJobs)
	go r.feed()
	return nil
}

// Release returns the description that was authenticated.
func (r *Reader) Release() *release.Release { return r.release }

// Description returns release.json and its signature as they lie in the
// archive; the signature is empty when there is none.
func (r *Reader) Description() (description, signature []byte) { return r.description, r.signature }

// Close stops what reads ahead.
func (r *Reader) Close() error {
	r.cancel(errors.New("archive is closed"))
	return nil
}

// feed reads members and hands them to the workers, up to the tar's size that
// follows from release.json and not a byte further. What is wrong takes its
// place in the row, so that it is the same error every time.
func (r *Reader) feed() {
	defer r.pipe.end()
	left := r.total - r.opened
	// Members as small as this serve no purpose but to cost time.
	members := 64 + left/4096
	for {
		j, err := r.pipe.job()
		if err != nil {
			return
		}
		if left == 0 {
			if err := r.atEnd(); err != nil {
				r.pipe.fail(j, err)
			}
			return
		}
		packed, size, err := readMember(r.src, j.packed)
		switch {
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("archive ends %d bytes early: %w", left, io.ErrUnexpectedEOF)
		case err != nil:
		case int64(size) > left:
			err = fmt.Errorf("archive unpacks to more than the %d bytes that %s says", r.total, release.ManifestFile)
		case members == 0:
			err = errors.New("archive has too many gzip members for its size")
		}
		if err != nil {
			r.pipe.fail(j, err)
			return
		}
		members--
		left -= int64(size)
		j.packed, j.plain = packed, grow(j.plain, size)
		r.pipe.submit(j)
	}
}

// atEnd reports what follows the last member.
func (r *Reader) atEnd() error {
	_, err := r.src.ReadByte()
	switch {
	case err == nil:
		return errors.New("data follows the end of the archive")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return fmt.Errorf("read archive: %w", err)
	}
}

// read reads the tar.
func (r *Reader) read(b []byte) (int, error) {
	for len(r.plain) == 0 {
		if err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// more unpacks the next member.
func (r *Reader) more() error {
	if r.pipe == nil {
		return r.moreStored()
	}
	if r.last != nil {
		r.pipe.release(r.last)
		r.last = nil
	}
	j, err := r.pipe.next()
	switch {
	case err != nil:
		return err
	case j == nil && r.ctx.Err() != nil:
		return context.Cause(r.ctx)
	case j == nil:
		return io.ErrUnexpectedEOF
	}
	r.last, r.plain = j, j.plain
	return nil
}

// moreStored unpacks a member of the head.
func (r *Reader) moreStored() error {
	packed, size, err := readMember(r.src, nil)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("archive ends in its head: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	if r.opened+int64(size) > release.MaxSize+MaxSignature+6*block {
		return errors.New("archive's head is too large")
	}
	r.plain = make([]byte, size)
	r.opened += int64(size)
	return unpackStored(r.plain, packed)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func (r *Reader) full(b []byte) error {
	_, err := io.ReadFull(readerFunc(r.read), b)
	return err
}

func (r *Reader) header() (h [block]byte, err error) { return h, r.full(h[:]) }

// small reads a file of the head with its padding.
func (r *Reader) small(size int64) ([]byte, error) {
	b := make([]byte, size+padding(size))
	if err := r.full(b); err != nil {
		return nil, err
	}
	if !zero(b[size:]) {
		return nil, errors.New("is not padded with zeros")
	}
	return b[:size:size], nil
}

// Next returns the next file that release.json describes, and its content. The
// content's Read returns io.EOF only when all of it was there with the right
// SHA-256: until then nothing that was read counts. The file before must have
// been read to that point. After the last file Next checks that the archive
// ends there, and returns io.EOF.
func (r *Reader) Next() (release.File, io.Reader, error) {
	if r.err == nil {
		r.err = r.advance()
	}
	if r.err != nil {
		return release.File{}, nil, r.err
	}
	f := r.release.Files[r.file]
	r.file++
	r.body = &body{r: r, file: f, left: f.Size, sum: sha256.New()}
	return f, r.body, nil
}

// advance reads what lies before the next file's content.
func (r *Reader) advance() error {
	if r.file == 0 {
		return nil // its header was read with the head
	}
	previous := r.release.Files[r.file-1]
	if !r.body.done {
		return fmt.Errorf("%s was not read to its end", previous.Name)
	}
	pad := make([]byte, padding(previous.Size))
	if err := r.full(pad); err != nil {
		return err
	}
	if !zero(pad) {
		return fmt.Errorf("%s is not padded with zeros", previous.Name)
	}
	if r.file == len(r.release.Files) {
		return r.finish()
	}
	h, err := r.header()
	if err != nil {
		return err
	}
	if f := r.release.Files[r.file]; h != header(f.Name, f.Size, r.release.SourceDate) {
		return fmt.Errorf("archive does not have %s, as %s describes it, where it belongs", f.Name, release.ManifestFile)
	}
	return nil
}

// finish reads the archive's end and returns io.EOF if it is one.
func (r *Reader) finish() error {
	end := make([]byte, trailer)
	if err := r.full(end); err != nil {
		return err
	}
	if !zero(end) {
		return errors.New("archive holds more files than a release has")
	}
	if len(r.plain) > 0 {
		return errors.New("archive is longer than its tar")
	}
	if err := r.more(); !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return io.EOF
}

// A body is the content of one file.
type body struct {
	r    *Reader
	file release.File
	left int64
	sum  hash.Hash
	done bool
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.done:
		return 0, io.EOF
	case b.r.err != nil:
		return 0, b.r.err
	case b.left == 0:
		if !bytes.Equal(b.sum.Sum(nil), b.file.SHA256) {
			b.r.err = fmt.Errorf("%s has another SHA-256 than %s says", b.file.Name, release.ManifestFile)
			return 0, b.r.err
		}
		b.done = true
		return 0, io.EOF
	}
	n, err := b.r.read(p[:min(int64(len(p)), b.left)])
	b.sum.Write(p[:n])
	b.left -= int64(n)
	if err != nil {
		b.r.err = fmt.Errorf("%s: %w", b.file.Name, err)
		return n, b.r.err
	}
	return n, nil
}
