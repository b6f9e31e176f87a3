package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A source is one of the three trees, with its name for errors. A nil source has
// nothing.
type source struct {
	tree Tree
	name string
	mark error // errors of it are this one as well
	// upper: it is an upper directory; elsewhere a whiteout is nothing.
	upper bool
	// owners are what the image's have become here.
	owners Owners
}

// A reader reads trees within the bounds.
type reader struct {
	ctx     context.Context
	masked  bool // the upper directory was over several images
	entries int
	bytes   int64
	indexed indexed
}

// fail says where an error happened.
func (s *source) fail(path string, err error) error {
	if s.mark != nil {
		return fmt.Errorf("%w: %s: %w", s.mark, Name(path), err)
	}
	return fmt.Errorf("%s: %s: %w", s.name, Name(path), err)
}

// entry describes what a tree has at a path, nil for nothing.
func (r *reader) entry(s *source, path string) (*Entry, error) {
	if s == nil {
		return nil, nil
	}
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	if r.entries++; r.entries > MaxEntries {
		return nil, fmt.Errorf("merge: more than %d files to look at", MaxEntries)
	}
	e, err := s.tree.Entry(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, s.fail(path, err)
	case e.Type == 0 || e.Type > Whiteout:
		return nil, s.fail(path, fmt.Errorf("type %d of file is unknown", e.Type))
	case e.Type == Whiteout && !s.upper:
		return nil, nil
	}
	e.Mode &= 0o7777
	return &e, nil
}

// names lists a directory, sorted.
func (r *reader) names(s *source, dir string) ([]string, error) {
	if s == nil {
		return nil, nil
	}
	if strings.Count(dir, "/") >= MaxDepth {
		return nil, s.fail(dir, fmt.Errorf("more than %d directories within one another", MaxDepth))
	}
	names, err := s.tree.Names(dir)
	if err != nil {
		return nil, s.fail(dir, err)
	}
	for _, name := range names {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return nil, s.fail(dir, fmt.Errorf("no file can have the name %q", name))
		}
	}
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// join is the path of a name in a directory.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// within reports whether a path is a directory or lies in it.
func within(p, dir string) bool {
	return dir == "." || p == dir || strings.HasPrefix(p, dir+"/")
}

// open reads a file, and counts.
func (r *reader) open(s *source, path string) (io.ReadCloser, error) {
	f, err := s.tree.Open(path)
	if err != nil {
		return nil, s.fail(path, err)
	}
	return &counted{ReadCloser: f, reader: r, fail: func(err error) error { return s.fail(path, err) }}, nil
}

type counted struct {
	io.ReadCloser
	reader *reader
	fail   func(error) error
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.reader.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.ReadCloser.Read(p)
	if c.reader.bytes += int64(n); c.reader.bytes > MaxRead {
		return n, fmt.Errorf("merge: more than %d bytes to compare", int64(MaxRead))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.fail(err)
	}
	return n, err
}

// text reads a file that may be merged by line. It reports false for one that is too
// large or not a text.
func (r *reader) text(s *source, path string) ([]byte, bool, error) {
	return r.textUpTo(s, path, MaxText)
}

func (r *reader) textUpTo(s *source, path string, most int) ([]byte, bool, error) {
	content, err := r.upTo(s, path, most)
	return content, err == nil && len(content) <= most && isText(content), err
}

// upTo reads a file, and one byte more than most of one that is larger.
func (r *reader) upTo(s *source, path string, most int) ([]byte, error) {
	f, err := r.open(s, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(most)+1))
}

// accountText reads an account file. It reports false for one that is not a text.
func (r *reader) accountText(s *source, path string) ([]byte, bool, error) {
	content, ok, err := r.textUpTo(s, path, MaxAccounts)
	if err == nil && len(content) > MaxAccounts {
		err = s.fail(path, fmt.Errorf("it is larger than %d MiB, too large to merge with another image's: without that, files would belong to the wrong users. Remove entries that nobody needs, and try again", MaxAccounts>>20))
	}
	return content, ok, err
}

// A file is an entry of a tree. A nil file is nothing.
type file struct {
	*Entry        // with its owners here
	raw    *Entry // as the tree has it; the same where that is no other
	from   *source
	path   string
}

func (r *reader) file(s *source, path string) (*file, error) {
	e, err := r.entry(s, path)
	if e == nil || err != nil {
		return nil, err
	}
	f := &file{e, e, s, path}
	if own := *e; s.owners.Translate(&own) {
		f.Entry = &own
	}
	return f, nil
}

func (f *file) is(t Type) bool { return f != nil && f.Type == t }

func (f *file) entry() *Entry {
	if f == nil {
		return nil
	}
	return f.Entry
}

// sameContent compares what two files hold, whatever their metadata; directories hold
// nothing here.
func (r *reader) sameContent(a, b *file) (bool, error) {
	if a == nil || b == nil || a.Type != b.Type {
		return a == nil && b == nil, nil
	}
	switch a.Type {
	case Link:
		return a.Target == b.Target, nil
	case CharDevice, BlockDevice:
		return a.Rdev == b.Rdev, nil
	case Regular:
		if a.Size != b.Size {
			return false, nil
		}
		return r.sameBytes(a, b)
	}
	return true, nil
}

// same compares content and metadata; b may be this machine's copy of a.
func (r *reader) same(a, b *file) (bool, error) {
	if a == nil || b == nil {
		return a == nil && b == nil, nil
	}
	now := b.Entry
	if b.from.upper {
		var err error
		if now, err = r.asHere(a, b); err != nil {
			return false, err
		}
	}
	if !metadataOf(a.Entry).equal(metadataOf(now)) {
		return false, nil
	}
	return r.sameContent(a, b)
}

func (r *reader) sameBytes(a, b *file) (bool, error) {
	inA, err := r.open(a.from, a.path)
	if err != nil {
		return false, err
	}
	defer inA.Close()
	inB, err := r.open(b.from, b.path)
	if err != nil {
		return false, err
	}
	defer inB.Close()
	bufA, bufB := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		nA, errA := io.ReadFull(inA, bufA)
		nB, errB := io.ReadFull(inB, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if !bytes.Equal(bufA[:nA], bufB[:nB]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			return errA != nil && errB != nil, nil
		}
	}
}

// sameTree compares two files with all that lies in them.
func (r *reader) sameTree(a, b *file) (bool, error) {
	same, err := r.same(a, b)
	if err != nil || !same || !a.is(Directory) {
		return same, err
	}
	names, err := r.names(a.from, a.path)
	if err != nil {
		return false, err
	}
	others, err := r.names(b.from, b.path)
	if err != nil || !slices.Equal(names, others) {
		return false, err
	}
	for _, name := range names {
		inA, err := r.file(a.from, path.Join(a.path, name))
		if err != nil {
			return false, err
		}
		inB, err := r.file(b.from, path.Join(b.path, name))
		if err != nil {
			return false, err
		}
		if same, err := r.sameTree(inA, inB); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}
