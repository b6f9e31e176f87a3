package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
)

// A Listed says which extensions a release has that was not fetched yet. It is a forecast: what
// is fetched for it in the end, the UKI says when it is there.
type Listed struct {
	Contract   *contract.Contract   `json:"contract"`
	Extensions []contract.Extension `json:"extensions"`
}

// List reads which extensions the release has, from the parts of its UKI that say so. It
// brings the block index, which stays in the directory, and writes nothing else. It is nil
// where the server sends no parts of files.
func (j *Job) List(ctx context.Context) (*Listed, error) {
	defer j.closeIndex()
	if err := j.begin(); err != nil {
		return nil, err
	}
	if !j.Found.Ranges {
		return nil, nil
	}
	if err := j.fetchIndex(ctx); err != nil {
		return nil, err
	}
	file, ok := j.index.File(release.UKIFile)
	if !ok {
		return nil, fmt.Errorf("block index has no file %s", release.UKIFile)
	}
	c, list, err := offer.Extensions(&remote{ctx: ctx, job: j, file: file, members: map[int][]byte{}})
	if err == nil {
		err = j.head.Release.Matches(c)
	}
	if err != nil {
		return nil, err
	}
	return &Listed{c, list}, nil
}

// A remote file is read from the server where it is read.
type remote struct {
	ctx     context.Context
	job     *Job
	file    *blockindex.File
	members map[int][]byte // that were fetched
}

// maxMembers bounds how many members are fetched and kept. What is asked for takes some ten.
const maxMembers = 64

// ReadAt implements io.ReaderAt.
func (r *remote) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at < 0 || at >= r.file.Size {
			return done, io.EOF
		}
		_, size := r.file.Content(0)
		i := int(at / int64(size))
		content, err := r.member(i)
		if err != nil {
			return done, err
		}
		first, _ := r.file.Content(i)
		done += copy(p[done:], content[at-first:])
	}
	return done, nil
}

// member fetches a member of the file, once.
func (r *remote) member(i int) ([]byte, error) {
	if content, ok := r.members[i]; ok {
		return content, nil
	}
	if len(r.members) == maxMembers {
		return nil, errors.New("its list of extensions takes too many parts of it")
	}
	var part blockindex.Part
	for n := range r.file.Parts() {
		if err := part.Load(r.file, n); err != nil {
			return nil, err
		}
		if first, end := part.MemberSpan(); i >= first && i < end {
			break
		}
	}
	first, size := r.file.Content(i)
	to := &window{at: first, b: make([]byte, size)}
	at, packed := part.Member(i)
	s := r.job.step(Fetching, r.file.Name, int64(packed))
	if err := newGetter(r.job, &part, to, s).get(r.ctx, blockindex.Range{First: i, Members: 1, Offset: at, Size: int64(packed)}); err != nil {
		return nil, err
	}
	r.members[i] = to.b
	return to.b, nil
}

// A window is a part of a file in memory.
type window struct {
	at int64
	b  []byte
}

// WriteAt implements io.WriterAt.
func (w *window) WriteAt(p []byte, off int64) (int, error) {
	if off < w.at || off+int64(len(p)) > w.at+int64(len(w.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(w.b[off-w.at:], p), nil
}
