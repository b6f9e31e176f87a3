package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/upper"
)

// LinuxStore is the root partition's file system, mounted at Root.
type LinuxStore struct {
	Root   string
	Mounts Mounts
}

// MakeFileSystem implements Store. It runs the mkfs of the verified system
// image, inside it: the initramfs needs none, and what runs is as verified as
// we are. Each mkfs flushes the device before it ends.
func (l LinuxStore) MakeFileSystem(kind, device, system string) error {
	args, ok := map[string][]string{
		"ext4":  {"-q", "-F", "-L", "halogen-root", "-m", "1", "-E", "lazy_itable_init=1,lazy_journal_init=1", device},
		"btrfs": {"-q", "-f", "-L", "halogen-root", device},
	}[kind]
	if !ok {
		return fmt.Errorf("make the root partition's file system: %q is not known here", kind)
	}
	return l.inImage(system, func() error {
		if err := run(system, "/sbin/mkfs."+kind, args...); err != nil {
			return fmt.Errorf("make the root partition's file system: %w", err)
		}
		return nil
	})
}

// open opens what has a name, without following any link on the way.
func (l LinuxStore) open(name string, flags uint64) (int, error) {
	root, err := unix.Open(l.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", l.Root, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w: %w", name, ErrUnfit, err)
	case err != nil:
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// noLink refuses a directory whose name leads through a link, or through what is not a directory,
// as far as it is there: process 1 would write where root of the running system wants it to,
// in the initramfs too. Nothing else runs that could change it until then.
func (l LinuxStore) noLink(name string) error {
	for {
		fd, err := l.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, fs.ErrNotExist) || name == "." {
			return err
		}
		name = filepath.Dir(name)
	}
}

// Read implements Store. It opens a pipe without waiting for its other end.
func (l LinuxStore) Read(name string, limit int64) ([]byte, error) {
	fd, err := l.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("read %s: %w: %d bytes (%s), at most %d of a file", name, ErrUnfit, info.Size(), info.Mode().Type(), limit)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// unfrozen does something to names, whatever keeps root from it (upper.Store.Unfrozen).
func (l LinuxStore) unfrozen(do func() error, names ...string) error {
	return upper.Store{Root: l.Root}.Unfrozen(do, names...)
}

// Keep implements Store by [KeepFile]. A directory that the running system has put where
// the file has its name, or the file that is to take its place, goes, and so do flags and a
// read-only subvolume that keep the file from its name: until the rename the old file is
// there, protected or not.
func (l LinuxStore) Keep(name string, content []byte) error {
	if err := l.noLink(filepath.Dir(name)); err != nil {
		return err
	}
	keep := func() error {
		return l.unfrozen(func() error { return KeepFile(filepath.Join(l.Root, name), content, 0o600) }, name, name+newEnding)
	}
	err := keep()
	if err != nil && l.discardDirectories(name, name+newEnding) {
		err = keep()
	}
	return Full(err)
}

// discardDirectories removes those of the names that are directories, and reports whether
// there were any.
func (l LinuxStore) discardDirectories(names ...string) (found bool) {
	for _, name := range names {
		fd, err := l.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		unix.Close(fd)
		_ = l.Discard(name) // or else the second attempt fails, too, and says why
		found = true
	}
	return found
}

// Full says of an error for want of room what is full, and what to do.
func Full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the root partition is full: %w; delete files that nobody needs (in the running system, or after `unlock` at the recovery console), and try again", err)
	}
	return err
}

// Remove implements Store.
//
// The running system can make a directory of the name, or protect the file (upper.Store.Unfrozen).
func (l LinuxStore) Remove(name string) error {
	directory, err := l.open(filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(directory), filepath.Dir(name))
	defer f.Close()
	err = unix.Unlinkat(directory, filepath.Base(name), 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return l.Discard(name)
	case err != nil:
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return f.Sync()
}

// MakeDirectory implements Store.
func (l LinuxStore) MakeDirectory(name string, mode fs.FileMode) error {
	if err := l.noLink(name); err != nil {
		return err
	}
	path := filepath.Join(l.Root, name)
	if err := l.unfrozen(func() error { return os.MkdirAll(path, mode) }, name); err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// Names implements Store.
func (l LinuxStore) Names(name string) ([]string, error) {
	return upper.Store{Root: l.Root}.Names(name)
}

// Discard implements Store.
func (l LinuxStore) Discard(name string) error {
	return upper.Store{Root: l.Root}.Discard(name, nil)
}

// ClearBut implements Store.
func (l LinuxStore) ClearBut(in []string, keep func(name string) bool) ([]string, error) {
	return upper.Store{Root: l.Root}.ClearBut(in, keep, nil)
}

// Disarm implements Store.
func (l LinuxStore) Disarm(name string, more func(looked int)) ([]string, error) {
	return upper.Store{Root: l.Root}.Disarm(name, more, nil)
}

// RootsOwn implements Store.
func (l LinuxStore) RootsOwn(name string, mode fs.FileMode) error {
	return upper.Store{Root: l.Root}.RootsOwn(name, mode, nil)
}

// Accounts implements Store.
func (l LinuxStore) Accounts(from upper.Source, image string) (map[string][]byte, error) {
	return upper.Store{Root: l.Root}.Accounts(from, image)
}

// GiveBack implements Store.
func (l LinuxStore) GiveBack(system, image string) error {
	return upper.Store{Root: l.Root}.GiveBack(system, image)
}

// TryPeople implements Store.
func (l LinuxStore) TryPeople(ctx context.Context, c upper.Carry) error {
	return upper.Store{Root: l.Root}.TryPeople(ctx, c)
}

// Carry implements Store.
func (l LinuxStore) Carry(ctx context.Context, c upper.Carry) (*upper.Report, error) {
	return upper.Store{Root: l.Root}.Carry(ctx, c)
}
