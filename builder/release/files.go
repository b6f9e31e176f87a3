package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// unfinished starts the names of files and folders that are being written. A
// web server's users may see them, but nothing names them.
const unfinished = ".publishing-"

// lock takes a folder for one publisher alone, and removes what one that was
// interrupted left behind.
func lock(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s, where another publisher seems to be at work: %w", dir, err), f.Close())
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
	return f.Close, nil // which unlocks
}

// makeFolders makes a folder and those above it so that they survive a power
// cut, and readable for a web server.
func makeFolders(dir string) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeFolders(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Chmod(dir, 0o755), syncFolder(parent))
}

// writeFile puts a file under its name in one step: whoever reads it sees all
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
	return errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
}

// writeLink puts a symbolic link under its name in one step.
func writeLink(dir, name, target string) error {
	if have, err := os.Readlink(filepath.Join(dir, name)); err == nil && have == target {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there and not a symbolic link: %w", name, err)
	}
	fresh := filepath.Join(dir, unfinished+"link")
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	return place(dir, fresh, name)
}

// place renames what is complete and synced to its name.
func place(dir, from, name string) error {
	if err := os.Rename(from, filepath.Join(dir, name)); err != nil {
		return errors.Join(fmt.Errorf("publish %s: %w", name, err), os.RemoveAll(from))
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
