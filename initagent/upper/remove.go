package upper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Names lists a directory of the root partition. One that is not there has none.
func (s Store) Names(name string) ([]string, error) {
	f, err := s.directory(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Discard removes a directory with all that is in it. It is renamed before: cut before
// that, it is whole; cut after it, it is gone, and what is left of it has a name that
// nothing looks for, and goes when a system's directory is made or removed again.
func (s Store) Discard(name string, step func(string) error) error {
	if step == nil {
		step = func(string) error { return nil }
	}
	parent, err := s.directory(path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	fd, base := int(parent.Fd()), path.Base(name)
	if err := sweep(parent, step); err != nil {
		return err
	}
	if err := step("rename " + name); err != nil {
		return err
	}
	err = unix.Renameat(fd, base, fd, base+unfinished)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return remove(parent, base+unfinished, step)
}

// sweep removes what was not finished in a directory, whosever it was.
func sweep(parent *os.File, step func(string) error) error {
	f, err := reopen(parent)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, n := range names {
		if strings.HasSuffix(n, unfinished) {
			if err := remove(parent, n, step); err != nil {
				return err
			}
		}
	}
	return err
}

// reopen is a directory once more, to be read from its beginning.
func reopen(directory *os.File) (*os.File, error) {
	fd, err := beneath(int(directory.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	return os.NewFile(uintptr(fd), directory.Name()), err
}

func (s Store) directory(name string) (*os.File, error) {
	root, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Root, err)
	}
	defer unix.Close(root)
	fd, err := beneath(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// remove removes a name of a directory, and all below it, without following a link.
func remove(parent *os.File, name string, step func(string) error) error {
	fd := int(parent.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := removeBelow(fd, name, step); err != nil {
			return err
		}
	}
	if err := step("remove " + name); err != nil {
		return err
	}
	flags := 0
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(fd, name, flags); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

func removeBelow(parent int, name string, step func(string) error) error {
	fd, err := beneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, n := range names {
		if err := remove(f, n, step); err != nil {
			return err
		}
	}
	return err
}
