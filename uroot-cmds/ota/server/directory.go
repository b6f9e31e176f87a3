package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bounded"
)

// A Directory is a server's content in a directory: a stick, a mirror, a network
// file system.
type Directory struct {
	root *os.Root
	path string
}

// OpenDirectory opens a directory. Links inside it may not lead out of it.
func OpenDirectory(path string) (*Directory, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open server's directory: %w", err)
	}
	return &Directory{root, path}, nil
}

// String implements Transport.
func (f *Directory) String() string { return f.path }

func (f *Directory) open(name string) (*os.File, Info, error) {
	if err := valid(name); err != nil {
		return nil, Info{}, err
	}
	// Without waiting, because a pipe could have the name.
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Info{}, fmt.Errorf("%s in %s: %w", name, f.path, ErrNotFound)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, Info{}, fmt.Errorf("%s in %s: %w: files must be readable for everybody, since they are read without privileges (a stick: mount it with umask=022)", name, f.path, err)
	}
	if err != nil {
		return nil, Info{}, fmt.Errorf("open %s in %s: %w", name, f.path, err)
	}
	info, err := infoOf(file)
	if err != nil {
		return nil, Info{}, errors.Join(fmt.Errorf("%s in %s: %w", name, f.path, err), file.Close())
	}
	return file, info, nil
}

// infoOf describes an open file, which must be a plain one.
func infoOf(file *os.File) (Info, error) {
	info, err := file.Stat()
	if err != nil {
		return Info{}, err
	}
	if !info.Mode().IsRegular() {
		return Info{}, fmt.Errorf("not a plain file (%s)", info.Mode().Type())
	}
	return Info{Size: info.Size()}, nil
}

// Get implements Transport.
func (f *Directory) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	file, _, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := bounded.Read(file, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// Open implements Transport.
func (f *Directory) Open(_ context.Context, name string) (io.ReadCloser, Info, error) {
	return f.open(name)
}

// Range implements Transport.
func (f *Directory) Range(_ context.Context, name string, w io.Writer, off, n int64) (int64, Info, error) {
	file, info, err := f.open(name)
	if err != nil {
		return 0, Info{}, err
	}
	defer file.Close()
	return rangeOf(file, name, info, w, off, n)
}

func rangeOf(file *os.File, name string, info Info, w io.Writer, off, n int64) (int64, Info, error) {
	got, err := io.Copy(w, io.NewSectionReader(file, off, n))
	if err != nil {
		return got, info, fmt.Errorf("read %d bytes of %s from byte %d on: %w", n, name, off, err)
	}
	if got < n {
		err = io.EOF
	}
	return got, info, err
}

// A File is one archive that was opened already. It is there under every name
// that is an archive's to Open and Range; nothing else is.
type File struct{ file *os.File }

// NewFile returns a transport over an open file, which stays the caller's.
func NewFile(file *os.File) *File { return &File{file} }

// String implements Transport.
func (f *File) String() string { return f.file.Name() }

// Get implements Transport.
func (f *File) Get(_ context.Context, name string, _ int64) ([]byte, error) {
	return nil, fmt.Errorf("%s beside %s: %w", name, f.file.Name(), ErrNotFound)
}

// Open implements Transport.
func (f *File) Open(context.Context, string) (io.ReadCloser, Info, error) {
	info, err := infoOf(f.file)
	if err != nil {
		return nil, Info{}, fmt.Errorf("%s: %w", f.file.Name(), err)
	}
	return io.NopCloser(io.NewSectionReader(f.file, 0, info.Size)), info, nil
}

// Range implements Transport.
func (f *File) Range(_ context.Context, _ string, w io.Writer, off, n int64) (int64, Info, error) {
	info, err := infoOf(f.file)
	if err != nil {
		return 0, Info{}, fmt.Errorf("%s: %w", f.file.Name(), err)
	}
	return rangeOf(f.file, f.file.Name(), info, w, off, n)
}
