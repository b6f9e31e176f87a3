package fat

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
)

// Open implements [fs.FS].
func (f *FS) Open(path string) (fs.File, error) {
	i, err := f.lookup(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if i.dir {
		return &openDir{f: f, info: i, path: path}, nil
	}
	file, err := f.openFile(i)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file.path = path
	return file, nil
}

func (f *FS) openFile(i *info) (*openFile, error) {
	if whole := int64(f.g.clusters) * f.g.clusterSize(); i.size > whole {
		return nil, fmt.Errorf("claims %d bytes, the volume has %d", i.size, whole)
	}
	file := &openFile{f: f, info: i}
	if i.size > 0 {
		c, err := f.chain(i.cluster)
		if err != nil {
			return nil, err
		}
		file.at = c
	}
	return file, nil
}

// ReadFile implements [fs.ReadFileFS]. It never allocates much more than it
// has read, whatever size an entry claims.
func (f *FS) ReadFile(path string) ([]byte, error) {
	file, err := f.Open(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(file); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// openFile is a file that is being read, from its start to its end.
type openFile struct {
	f    *FS
	info *info
	path string
	at   *chain
	off  int64
	err  error // what the next Read returns
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openFile) Close() error               { return nil }

// Read implements [io.Reader]. Neighbouring clusters are read at once. What
// lies before a break in the chain is read before the error is returned.
func (o *openFile) Read(p []byte) (int, error) {
	left := o.info.size - o.off
	if o.err == nil && left <= 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), max(left, 0))]
	if o.err != nil || len(p) == 0 {
		return 0, o.err
	}
	start := o.f.g.cluster(o.at.cluster) + o.off%o.f.g.clusterSize()
	n := o.contiguous(int64(len(p)))
	if err := readFull(o.f.r, p[:n], start); err != nil {
		o.fail(fmt.Errorf("%d bytes at byte %d: %w", n, o.off, err))
		return 0, o.err
	}
	o.off += n
	return int(n), nil
}

func (o *openFile) fail(err error) {
	o.err = &fs.PathError{Op: "read", Path: o.path, Err: err}
}

// contiguous returns how many of the next want bytes lie side by side, and
// moves the chain on to the cluster of the byte behind them. The file's end
// may be that of the chain, so that is not passed.
func (o *openFile) contiguous(want int64) int64 {
	size := o.f.g.clusterSize()
	n := min(want, size-o.off%size)
	for (o.off+n)%size == 0 && o.off+n < o.info.size {
		last := o.at.cluster
		if err := o.at.advance(); err != nil {
			o.fail(fmt.Errorf("byte %d of %d: %w", o.off+n, o.info.size, noEOF(err)))
			return n
		}
		if n == want || o.at.cluster != last+1 {
			return n
		}
		n += min(want-n, size)
	}
	return n
}

// openDir is an open directory.
type openDir struct {
	f    *FS
	info *info
	path string
	rest []fs.DirEntry
	err  error
	read bool
}

func (o *openDir) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openDir) Close() error               { return nil }

func (o *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: o.path, Err: fmt.Errorf("is a directory: %w", fs.ErrInvalid)}
}

// ReadDir implements [fs.ReadDirFile].
func (o *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !o.read {
		o.read = true
		o.rest, o.err = o.f.sorted(o.info)
		if o.err != nil {
			o.err = &fs.PathError{Op: "readdir", Path: o.path, Err: o.err}
		}
	}
	if n <= 0 || n > len(o.rest) {
		some := o.rest
		o.rest = nil
		if n > 0 && len(some) == 0 && o.err == nil {
			return nil, io.EOF
		}
		return some, o.err
	}
	some := o.rest[:n]
	o.rest = o.rest[n:]
	return some, nil
}

var (
	_ io.Reader      = (*openFile)(nil)
	_ fs.ReadDirFile = (*openDir)(nil)
)
