package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/release"
)

// outputs are files being made for a directory. They come into being in a directory
// of their own inside it, which makes the final renaming possible, and which
// Close removes with all that was not published. The directory is theirs alone until
// then: files of two builds would not fit together.
type outputs struct {
	dir  string // the destination
	work string // on the same file system
	lock *os.File
}

func newOutputs(dir string) (*outputs, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open output directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another build writes to it: wait until it has ended, or name another --out")
		}
		return nil, errors.Join(fmt.Errorf("lock output directory %s: %w", dir, err), lock.Close())
	}
	work, err := os.MkdirTemp(dir, ".halogen-build-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make working directory: %w", err), lock.Close())
	}
	return &outputs{dir: dir, work: work, lock: lock}, nil
}

// Close removes the working directory, and unlocks the destination.
func (o *outputs) Close() error {
	// Directories of the staged tree may not be writable for their owner.
	err := filepath.WalkDir(o.work, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(o.work), o.lock.Close())
}

func (o *outputs) path(name string) string { return filepath.Join(o.work, name) }

// write makes a file and syncs it.
func (o *outputs) write(name string, content []byte) error {
	f, err := os.OpenFile(o.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// publish moves the files to their destination. release.json goes first and
// comes last: wherever this stops, a release.json that is there describes the
// files beside it. The images that are made of a release go with the release
// before, whether or not this build makes others: written to a disk, they would install that one.
func (o *outputs) publish(names ...string) error {
	for _, name := range append(names, release.FileName) {
		if err := o.finish(name); err != nil {
			return fmt.Errorf("sync %s: %w", name, err)
		}
	}
	for _, name := range []string{release.FileName, DiskFile, StickFile} {
		if err := os.Remove(filepath.Join(o.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s of the previous release: %w", name, err)
		}
		if err := syncDirectory(o.dir); err != nil {
			return err
		}
	}
	for _, name := range append(names, release.FileName) {
		if err := os.Rename(o.path(name), filepath.Join(o.dir, name)); err != nil {
			return fmt.Errorf("publish %s: %w", name, err)
		}
	}
	return syncDirectory(o.dir)
}

// finish syncs a file and gives it the mode that a umask may have kept back.
func (o *outputs) finish(name string) error {
	f, err := os.OpenFile(o.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
}

func syncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
