package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// A Spool keeps what is packed until the archive's head is known, such as an
// empty file: it is written front to back and then read.
type Spool interface {
	io.Writer
	io.ReaderAt
}

// Input is what goes into an archive.
type Input struct {
	Build *release.Release
	// Sign returns the signature of release.json, or nothing for a release that is not signed.
	Sign func(description []byte) ([]byte, error)
	// Open returns the content of each of the build's files in turn; one that differs from its
	// description fails the write.
	Open func(release.File) (io.ReadCloser, error)
}

// Write packs a build and writes the archive to w. release.json comes first
// and says how large all that follows is packed, so that the files are packed
// into the spool before. The description that the archive has is returned.
func Write(ctx context.Context, w io.Writer, spool Spool, in Input, o Options) (*release.Release, error) {
	build := in.Build
	if err := build.Validate(); err != nil {
		return nil, err
	}
	if build.Published() {
		return nil, errors.New("write archive: the release is packed already")
	}
	if build.SourceDate > maxDate {
		return nil, fmt.Errorf("source date %d is more than a tar header holds", build.SourceDate)
	}
	k := &packing{spool: spool, packed: make([]int64, len(build.Files)), index: blockindex.NewBuilder(o.memberBlocks())}
	if err := k.pack(ctx, build, in.Open, o); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	r, index := k.describe(build)
	description, err := r.Encode()
	if err != nil {
		return nil, err
	}
	signature, err := in.Sign(description)
	if err != nil {
		return nil, err
	}
	if len(signature) > MaxSignature {
		return nil, fmt.Errorf("signature has %d bytes, more than %d", len(signature), MaxSignature)
	}
	if err := k.write(ctx, w, r, description, signature, index); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return r, nil
}

// packing is a build's files on their way into the archive.
type packing struct {
	spool  Spool
	packed []int64 // bytes of each file in the spool
	index  *blockindex.Builder
}

// pack packs the files into the spool.
func (k *packing) pack(ctx context.Context, build *release.Release, open func(release.File) (io.ReadCloser, error), o Options) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := newPipeline(ctx, o.workers(), packJobs(build.Salt))
	var wrote sync.WaitGroup
	wrote.Go(func() {
		if err := p.drain(k.take); err != nil {
			cancel(err)
		}
	})
	var err error
	for i, f := range build.Files {
		if err = packFile(p, i, f, open, o.memberBlocks()*blockindex.BlockSize); err != nil {
			err = fmt.Errorf("%s: %w", f.Name, err)
			break
		}
	}
	p.end()
	if err != nil {
		cancel(err)
	}
	wrote.Wait()
	p.wait()
	return context.Cause(ctx)
}

// take keeps the members of a job.
func (k *packing) take(j *job) error {
	if _, err := k.spool.Write(j.packed); err != nil {
		return err
	}
	k.packed[j.file] += int64(len(j.packed))
	hashes := j.hashes
	for _, size := range j.sizes {
		n := min(j.size/blockindex.BlockSize, len(hashes))
		if err := k.index.Add(size, hashes[:n]); err != nil {
			return err
		}
		hashes = hashes[n:]
	}
	return nil
}

// jobSize is about how many bytes are read, packed and written at once: enough
// that handing them over costs next to nothing.
const jobSize = 256 << 10

// packFile cuts a file into members of size bytes.
func packFile(p *pipeline, file int, f release.File, open func(release.File) (io.ReadCloser, error), size int) (err error) {
	content, err := open(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	sum := sha256.New()
	some := int64(max(1, jobSize/size) * size)
	for left := f.Size; left > 0; {
		j, err := p.job()
		if err != nil {
			return err
		}
		j.file, j.size, j.plain = file, size, grow(j.plain, int(min(some, left)))
		if _, err := io.ReadFull(content, j.plain); err != nil {
			return fmt.Errorf("read the last %d of %d bytes: %w", left, f.Size, err)
		}
		sum.Write(j.plain)
		left -= int64(len(j.plain))
		p.submit(j)
	}
	var more [1]byte
	if n, err := io.ReadFull(content, more[:]); n > 0 {
		return fmt.Errorf("has more than the %d bytes that %s says", f.Size, release.FileName)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), f.SHA256) {
		return fmt.Errorf("has another SHA-256 than %s says", release.FileName)
	}
	return nil
}

// describe returns the description of the archive, and the index's members.
func (k *packing) describe(build *release.Release) (*release.Release, []byte) {
	r := *build
	r.Files = slices.Clone(build.Files)
	for i := range r.Files {
		r.Files[i].Packed = k.packed[i]
	}
	index := k.index.Encode()
	sum := sha256.Sum256(index)
	members := storedMembers(nil, index)
	image := len(r.Files) - 1
	r.Files = slices.Insert(r.Files, image, release.File{Name: release.IndexFile, Size: int64(len(index)), SHA256: sum[:], Packed: int64(len(members))})
	return &r, members
}

// write puts head, files and end together.
func (k *packing) write(ctx context.Context, w io.Writer, r *release.Release, description, signature, index []byte) error {
	head := tarFile(nil, release.FileName, description, r.SourceDate)
	if len(signature) > 0 {
		head = tarFile(head, SignatureFile, signature, r.SourceDate)
	}
	spooled := int64(0)
	buffer := make([]byte, jobSize)
	for _, f := range r.Files {
		h := header(f.Name, f.Size, r.SourceDate)
		if _, err := w.Write(storedMembers(nil, append(head, h[:]...))); err != nil {
			return err
		}
		var content io.Reader = bytes.NewReader(index)
		if f.Name != release.IndexFile {
			content = io.NewSectionReader(k.spool, spooled, f.Packed)
			spooled += f.Packed
		}
		for left := f.Packed; left > 0; {
			b := buffer[:min(left, int64(len(buffer)))]
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := io.ReadFull(content, b); err != nil {
				return fmt.Errorf("%s: read the last %d of %d bytes that were packed: %w", f.Name, left, f.Packed, err)
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			left -= int64(len(b))
		}
		head = make([]byte, padding(f.Size))
	}
	_, err := w.Write(storedMembers(nil, append(head, make([]byte, trailer)...)))
	return err
}

// tarFile appends a file with header and padding.
func tarFile(out []byte, name string, content []byte, date int64) []byte {
	h := header(name, int64(len(content)), date)
	out = append(append(out, h[:]...), content...)
	return append(out, make([]byte, padding(int64(len(content))))...)
}

// storedMembers appends members that hold plain without compression.
func storedMembers(out, plain []byte) []byte {
	for b := range slices.Chunk(plain, MaxMember) {
		out = storedMember(out, b)
	}
	return out
}

// grow returns a slice of n bytes, in b's memory where that is enough.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
