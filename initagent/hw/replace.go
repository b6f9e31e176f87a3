package hw

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newEnding ends the name of a file that is to take another one's place.
const newEnding = ".new"

// ReplaceFile puts what write writes into the place of a file in one step. It gets its name
// when it is complete and on the disk: cut before the rename, the old one is there, and what
// is left of the new one is removed the next time. So is what somebody may have put in its
// place: opening a pipe would wait for ever. The file is a new one: nobody has it open.
func ReplaceFile(path string, mode os.FileMode, write func(w io.Writer) error) error {
	fresh := path + newEnding
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(fresh) // what there is of it takes the room that is missing
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// KeepFile is ReplaceFile by content.
func KeepFile(path string, content []byte, mode os.FileMode) error {
	return ReplaceFile(path, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// RemoveFile removes a file for good; one that is missing is fine.
func RemoveFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// SyncDirectory has the names in a directory survive a power cut.
func SyncDirectory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
