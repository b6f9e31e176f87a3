package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/server"
)

// streams is how often a whole archive is begun before it has failed.
const streams = 3

// byStream reads the whole archive front to back, for a server that sends no
// parts of files.
func (j *Job) byStream(ctx context.Context) error {
	if done, err := j.isHere(ctx); done || err != nil {
		return err
	}
	j.note("the server sends no parts of files: the whole archive of %d MiB is read, from the start each time", j.head.ArchiveSize()>>20)
	for try := 1; ; try++ {
		cut, err := j.stream(ctx)
		if err == nil || !cut || try == streams || ctx.Err() != nil || errors.Is(err, server.ErrSlow) {
			return explain(err)
		}
		j.note("%v; starting again", err)
	}
}

// isHere reports whether an earlier try has left everything, or the machine can
// copy what is missing.
func (j *Job) isHere(ctx context.Context) (bool, error) {
	if j.openIndex() != nil {
		return false, nil
	}
	if j.Extension != nil {
		return j.filledOffline(ctx, j.extensionSource())
	}
	for _, name := range []string{release.UKIFile, release.BootManagerFile} {
		if ok, err := j.whole(name); !ok || err != nil {
			return false, err
		}
	}
	if err := j.checkUKI(release.UKIFile); err != nil {
		return false, err
	}
	uki, err := j.Directory.Open(release.UKIFile)
	if err != nil {
		return false, err
	}
	defer uki.Close() // it was only read
	return j.filledOffline(ctx, j.imageSource(uki))
}

// filledOffline reports whether the large file is there, or could be made of what is.
func (j *Job) filledOffline(ctx context.Context, from *source) (bool, error) {
	err := j.fill(ctx, j.large(), j.System, from, false)
	if errors.Is(err, errLacking) {
		return false, nil
	}
	return err == nil, err
}

// A tap counts what is read and keeps the error that is not the archive's.
type tap struct {
	job *Job
	s   *step
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (t *tap) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.job.meter.fetched.Add(int64(n))
	t.s.add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

// stream reads the archive once. cut is whether it was the connection that ended
// it.
func (j *Job) stream(ctx context.Context) (cut bool, err error) {
	body, _, err := j.Server.Open(ctx, j.Archive)
	if err != nil {
		return false, err
	}
	defer body.Close()
	t := &tap{job: j, s: j.step(Fetching, j.Archive, j.head.ArchiveSize()), r: body}
	same := func(description, signature []byte) error {
		if !bytes.Equal(description, j.head.Description) || !bytes.Equal(signature, j.head.Signature) {
			return ErrOther
		}
		return nil // authenticated with the head
	}
	// Closing the archive ends what reads ahead, before the body is closed.
	r, err := archive.Open(ctx, t, same, archive.Options{Workers: parallel, Extension: j.Extension != nil})
	if err != nil {
		return t.err != nil, err
	}
	defer r.Close()
	for {
		f, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err == nil {
			err = j.streamFile(ctx, f, content)
		}
		if err != nil {
			return errors.Is(err, io.ErrUnexpectedEOF) || t.failed(), err
		}
	}
}

func (t *tap) failed() bool { return t.err != nil }

// streamFile takes the next file of the archive.
func (j *Job) streamFile(ctx context.Context, f release.File, content io.Reader) error {
	switch f.Name {
	case release.IndexFile:
		return j.keepIndex(content)
	case j.large():
		return j.streamImage(ctx, content)
	}
	if err := j.streamSmall(f, content); err != nil {
		return err
	}
	if f.Name == release.UKIFile {
		return j.checkUKI(release.UKIFile)
	}
	return nil
}

func (j *Job) streamSmall(f release.File, content io.Reader) error {
	file, err := j.create(f.Name + partial)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(0); err != nil {
		return err
	}
	if _, err := io.Copy(file, content); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return j.settle(file, f.Name+partial, f.Name)
}

// flushEvery bounds what a power cut takes away of a stream, in bytes.
const flushEvery = 64 << 20

// streamImage writes the large file as it comes, each block compared with
// the index first.
func (j *Job) streamImage(ctx context.Context, content io.Reader) error {
	file, ok := j.index.File(j.large())
	if !ok {
		return fmt.Errorf("block index has no file %s", j.large())
	}
	var part blockindex.Part
	if err := part.Load(file, 0); err != nil {
		return err
	}
	h := blockindex.NewHasher(j.head.Release.Salt)
	buffer := make([]byte, copyAtOnce*blockindex.BlockSize)
	for at, flushed := int64(0), int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(content, buffer[:min(int64(len(buffer)), file.Size-at)])
		if at == file.Size {
			_, err = content.Read(buffer[:1]) // the image's SHA-256 is checked here
		}
		if errors.Is(err, io.EOF) && at == file.Size {
			return j.System.Sync()
		}
		if err != nil {
			return err
		}
		for i, sum := range h.All(buffer[:n]) {
			block := int(at/blockindex.BlockSize) + i
			if err := part.Reach(block); err != nil {
				return err
			}
			if sum != part.Hash(block) {
				return fmt.Errorf("%s: block %d: %w", file.Name, block, errDamaged)
			}
		}
		if _, err := j.System.WriteAt(buffer[:n], at); err != nil {
			return fmt.Errorf("%s: write %d bytes at byte %d: %w", file.Name, n, at, err)
		}
		at += int64(n)
		if at-flushed >= flushEvery {
			if err := j.System.Sync(); err != nil {
				return fmt.Errorf("flush %s: %w", file.Name, err)
			}
			flushed = at
		}
	}
}
