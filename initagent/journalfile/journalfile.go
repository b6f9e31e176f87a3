// Package journalfile reads and appends to the boot journal in the running
// system. What an entry is, and what happens to a journal that grows, is
// boot/journal's.
//
// It refuses to write in place: a cut leaves the journal with the new entry, or
// without it.
package journalfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/journal"
)

// Directory is where the running system has what it shares with the boot.
const Directory = "/var/lib/halogen"

// Read returns the entries, oldest first. No journal has none.
func Read(directory string) ([]journal.Entry, error) {
	text, err := read(directory)
	return journal.Parse(text), err
}

func read(directory string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(directory, journal.Name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file (%s)", f.Name(), info.Mode())
	}
	if over := info.Size() - journal.MaxSize; over > 0 {
		if _, err := f.Seek(over, io.SeekStart); err != nil {
			return nil, err
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, journal.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("read boot journal: %w", err)
	}
	return text, nil
}

// Append adds entries, one process at a time. A journal that cannot be read is
// not replaced. When Append has returned, the entries survive a power cut.
func Append(directory string, entries ...journal.Entry) (err error) {
	dir, err := os.Open(directory)
	if err != nil {
		return fmt.Errorf("append to boot journal: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("append to boot journal: lock: %w", err)
	}
	text, err := read(directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if text, err = journal.Append(text, e); err != nil {
			return err
		}
	}
	return write(dir, text)
}

// write replaces the journal. Cut before the rename, the old one is there, and
// what is left of the new one is overwritten the next time.
func write(dir *os.File, text []byte) error {
	path := filepath.Join(dir.Name(), journal.Name)
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("append to boot journal: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("append to boot journal: %w", errors.Join(err, os.Remove(fresh)))
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("append to boot journal: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("flush the boot journal's directory: %w", err)
	}
	return nil
}
