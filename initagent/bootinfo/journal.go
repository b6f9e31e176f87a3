package bootinfo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/hw"
)

// Directory is where the running system has what it shares with the boot.
const Directory = statefiles.Directory

// ReadJournal returns the entries, oldest first. No journal has none.
func ReadJournal(directory string) ([]journal.Entry, error) {
	text, err := readJournal(directory)
	return journal.Parse(text), err
}

func readJournal(directory string) ([]byte, error) {
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
		return nil, fmt.Errorf("%s is not a file (%s)", f.Name(), info.Mode())
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

// AppendJournal adds entries, one process at a time. A journal that cannot be read is
// not replaced. When AppendJournal has returned, the entries survive a power cut.
func AppendJournal(directory string, entries ...journal.Entry) (err error) {
	dir, err := os.Open(directory)
	if err != nil {
		return fmt.Errorf("append to boot journal: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("append to boot journal: lock: %w", err)
	}
	text, err := readJournal(directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if text, err = journal.Append(text, e); err != nil {
			return err
		}
	}
	if err := hw.KeepFile(filepath.Join(directory, journal.Name), text, 0o600); err != nil {
		return fmt.Errorf("append to boot journal: %w", err)
	}
	return nil
}
