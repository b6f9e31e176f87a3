package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"halogenos.internal/boot/release"
)

// outputs are files being made for a directory. They come into being in a directory
// of their own inside it, which makes the final renaming possible, and which
// Close removes with all that was not published.
type outputs struct {
	dir  string // the destination
	work string // on the same file system
}

func newOutputs(dir string) (*outputs, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	work, err := os.MkdirTemp(dir, ".halogen-build-")
	if err != nil {
		return nil, fmt.Errorf("make working directory: %w", err)
	}
	return &outputs{dir: dir, work: work}, nil
}

// Close removes the working directory.
func (o *outputs) Close() error {
	// Directories of the staged tree may not be writable for their owner.
	err := filepath.WalkDir(o.work, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(o.work))
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
// files beside it.
func (o *outputs) publish(names ...string) error {
	for _, name := range append(names, release.FileName) {
		if err := o.finish(name); err != nil {
			return fmt.Errorf("sync %s: %w", name, err)
		}
	}
	if err := os.Remove(filepath.Join(o.dir, release.FileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the previous release: %w", err)
	}
	if err := syncDirectory(o.dir); err != nil {
		return err
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
