package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"halogenos.internal/boot/contract"
)

// unfinished starts the names of files and directories that are being written. A
// web server's users may see them, but nothing names them.
const unfinished = ".publishing-"

// lock takes a directory for one publisher alone, and removes what one that was
// interrupted left behind.
func lock(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another publisher is at work in %s: wait until it has ended, and try again", dir), f.Close())
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
	}
	// A program that another goroutine is starting has the file, too, until it is executed.
	return func() error { return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close()) }, nil
}

// makeDirectories makes a directory and those above it so that they survive a power
// cut, and readable for a web server.
func makeDirectories(dir string) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory: name another place", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeDirectories(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(readable(os.Chmod(dir, 0o755)), syncDirectory(parent))
}

// writeFile puts a file under its name in one step: anyone who reads it sees all
// of the old or all of the new content.
func writeFile(dir, name string, content []byte) error {
	f, err := os.CreateTemp(dir, unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, finish(f)); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return place(dir, f.Name(), name)
}

// finish makes a file readable, syncs and closes it.
func finish(f *os.File) error {
	return errors.Join(readable(f.Chmod(0o644)), f.Sync(), f.Close())
}

// readable passes over a file system that has no modes, such as a stick's.
func readable(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// writeLink puts a symbolic link to a release under its name in one step; version 0
// takes it away. What is there and no link is left alone: somebody has put it there,
// or copied the server in a way that makes directories of links.
func writeLink(dir, name string, v contract.Version) error {
	path := filepath.Join(dir, name)
	have, err := os.Readlink(path)
	if _, missing := os.Lstat(path); errors.Is(missing, fs.ErrNotExist) {
		have, err = "", nil
	}
	switch {
	case err != nil:
		return errors.New("what is there is no symbolic link, and left as it is")
	case v == 0 && have == "" || v != 0 && have == v.String():
		return nil
	case v == 0:
		return errors.Join(os.Remove(path), syncDirectory(dir))
	}
	fresh := filepath.Join(dir, unfinished+"link")
	if err := os.Symlink(v.String(), fresh); err != nil {
		return err
	}
	return place(dir, fresh, name)
}

// place renames what is complete and synced to its name.
func place(dir, from, name string) error {
	if err := os.Rename(from, filepath.Join(dir, name)); err != nil {
		return errors.Join(fmt.Errorf("publish %s: %w", name, err), os.RemoveAll(from))
	}
	return syncDirectory(dir)
}

func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	sync := f.Sync()
	if errors.Is(sync, syscall.EINVAL) || errors.Is(sync, errors.ErrUnsupported) {
		sync = nil // a network's file system may not know it
	}
	if err := errors.Join(sync, f.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
