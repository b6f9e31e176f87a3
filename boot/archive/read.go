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

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// A Reader unpacks an archive front to back, in constant memory. It belongs to
// one goroutine.
type Reader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	src    *bufio.Reader
	head   *Head
	files  []release.File
	places []blockindex.Place
	note   func(packed, plain int)

	plain  []byte // unpacked and not read yet
	packed int64  // bytes of the archive that are unpacked

	pipe *pipeline
	last *job  // what plain lies in
	file int   // index of the file that Next returns next
	body *body // the file that is being read
	err  error // what ended it
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
	read := ReadHead
	if o.Extension {
		read = ReadExtensionHead
	}
	var err error
	if r.head, err = read(r.src, authenticate); err != nil {
		cancel(err)
		return nil, err
	}
	r.files, r.places, r.packed, r.note = r.head.Release.Files, r.head.Places(), r.head.Size, o.Members
	r.pipe = newPipeline(r.ctx, min(o.workers(), maxUnpackers), unpackJobs)
	go r.feed()
	return r, nil
}

// Head returns the archive's head, which was authenticated.
func (r *Reader) Head() *Head { return r.head }

// Release returns the description that was authenticated.
func (r *Reader) Release() *release.Release { return r.head.Release }

// Description returns release.json and its signature as they lie in the
// archive; the signature is empty when there is none.
func (r *Reader) Description() (description, signature []byte) {
	return r.head.Description, r.head.Signature
}

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
	left := r.head.total() - r.head.plain
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
			err = fmt.Errorf("archive unpacks to more than the %d bytes that %s says", r.head.total(), release.FileName)
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
	r.packed += memberHead + int64(len(j.packed))
	if r.note != nil {
		r.note(memberHead+len(j.packed), len(j.plain))
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func (r *Reader) full(b []byte) error {
	_, err := io.ReadFull(readerFunc(r.read), b)
	return err
}

func (r *Reader) header() (h [block]byte, err error) { return h, r.full(h[:]) }

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
	f := r.files[r.file]
	r.file++
	r.body = &body{r: r, file: f, left: f.Size, sum: sha256.New()}
	return f, r.body, nil
}

// advance reads what lies before the next file's content.
func (r *Reader) advance() error {
	if r.file == 0 {
		return nil // its header was read with the head
	}
	previous := r.files[r.file-1]
	if !r.body.done {
		return fmt.Errorf("%s was not read to its end", previous.Name)
	}
	// By this the parts of an archive are found that are fetched alone.
	if place := r.places[r.file-1]; len(r.plain) > 0 || r.packed != place.Offset+place.Packed {
		return fmt.Errorf("%s does not take the %d bytes of the archive that %s says", previous.Name, place.Packed, release.FileName)
	}
	pad := make([]byte, padding(previous.Size))
	if err := r.full(pad); err != nil {
		return err
	}
	if !zero(pad) {
		return fmt.Errorf("%s is not padded with zeros", previous.Name)
	}
	if r.file == len(r.files) {
		return r.finish()
	}
	h, err := r.header()
	if err != nil {
		return err
	}
	if f := r.files[r.file]; h != header(f.Name, f.Size, r.head.Release.SourceDate) {
		return fmt.Errorf("archive does not have %s, as %s describes it, where it belongs", f.Name, release.FileName)
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
			b.r.err = fmt.Errorf("%s has another SHA-256 than %s says", b.file.Name, release.FileName)
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
