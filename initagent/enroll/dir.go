package enroll

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MaxEFIFile bounds an EFI file in bytes: the ESP has 512 MiB for two UKIs and
// a third while it is replaced.
const MaxEFIFile = 256 << 20

// maxDirectory bounds how many names of one directory are looked at.
const maxDirectory = 4096

// A FileInfo is one name in a directory.
type FileInfo struct {
	Name      string
	Directory bool
	Size      int64 // in bytes, of a file
}

// Dir is the ESP as far as signing needs it. Names are relative, with slashes.
// There is no rename: on vfat, a name that was renamed can be of length zero
// after a power cut.
type Dir interface {
	// List returns a directory's names in no order.
	List(directory string) ([]FileInfo, error)
	// Read returns a file as it is on the disk, not as the cache has it. More
	// than MaxEFIFile bytes are an error.
	Read(name string) ([]byte, error)
	// Create makes a file that is not there yet. A cut leaves any part of it,
	// until SyncFile and then SyncDir have returned.
	Create(name string, data []byte) error
	// Open opens a file that is there for changes in place.
	Open(name string) (File, error)
	// Remove takes a file away; a cut may bring it back until SyncDir.
	Remove(name string) error
	SyncFile(name string) error
	SyncDir(directory string) error
}

// File is a file that is changed where it lies.
type File interface {
	// Reserve gives the file room for size bytes without changing its length.
	Reserve(size int64) error
	WriteAt(p []byte, off int64) (int, error)
	// Sync returns when content, length and room survive a power cut.
	Sync() error
	Close() error
}

// MountedDir is a directory of the running system, the ESP's mount point. It is best
// mounted with errors=continue: what a cut leaves in the FAT's free clusters
// harms no file, and must not make the ESP read-only.
type MountedDir struct{ Root string }

func (d MountedDir) path(name string) (string, error) {
	if name != "" && !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q is not a name inside the EFI system partition", name)
	}
	return filepath.Join(d.Root, name), nil
}

// List implements Dir.
func (d MountedDir) List(directory string) ([]FileInfo, error) {
	path, err := d.path(directory)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(maxDirectory + 1)
	if err != nil && len(entries) == 0 && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxDirectory {
		return nil, fmt.Errorf("directory %s has more than %d names", directory, maxDirectory)
	}
	out := make([]FileInfo, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() && !e.Type().IsRegular() {
			continue
		}
		found := FileInfo{Name: e.Name(), Directory: e.IsDir()}
		if info, err := e.Info(); err == nil && !e.IsDir() {
			found.Size = info.Size()
		}
		out = append(out, found)
	}
	return out, nil
}

// Read implements Dir. Clean pages are dropped first; anyone who wants to read
// back what was just written has synced it.
func (d MountedDir) Read(name string) ([]byte, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > MaxEFIFile {
		return nil, fmt.Errorf("read %s: %d bytes of %s, at most %d of a regular file are read", name, info.Size(), info.Mode().Type(), MaxEFIFile)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, fmt.Errorf("drop what is cached of %s: %w", name, err)
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// Create implements Dir.
func (d MountedDir) Create(name string, data []byte) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Remove implements Dir.
func (d MountedDir) Remove(name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// MakeDirectory makes a directory and those above it, where they are missing. A cut
// may take it away again until it was flushed with SyncDir, and the directory
// above it with it.
func (d MountedDir) MakeDirectory(name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	return os.MkdirAll(path, 0o700)
}

// FreeBytes is how much room the file system has left.
func (d MountedDir) FreeBytes() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.Root, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", d.Root, err)
	}
	return int64(min(s.Bavail, 1<<50/uint64(max(s.Bsize, 1)))) * s.Bsize, nil
}

// Rename gives a file another name in the same directory. It is for the boot
// counter alone, which is a part of the name: everything else gets a fresh name
// and is written again (Replace).
//
// Flushing the directory right after the rename can leave the new name with a
// length of zero on vfat; measured on Linux 6.1, flushing the file once more
// before the directory leaves the old name or the new one, each with its content.
func (d MountedDir) Rename(from, to string) error {
	if filepath.Dir(from) != filepath.Dir(to) {
		return fmt.Errorf("rename %s to %s: not the same directory", from, to)
	}
	old, err := d.path(from)
	if err != nil {
		return err
	}
	fresh, err := d.path(to)
	if err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, fresh, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return errors.Join(d.SyncFile(to), d.SyncDir(filepath.Dir(to)))
}

// SyncFile implements Dir.
func (d MountedDir) SyncFile(name string) error { return d.sync(name, os.O_WRONLY) }

// SyncDir implements Dir.
func (d MountedDir) SyncDir(directory string) error { return d.sync(directory, os.O_RDONLY) }

func (d MountedDir) sync(name string, flag int) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open implements Dir.
func (d MountedDir) Open(name string) (File, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return mountedFile{f}, nil
}

type mountedFile struct{ *os.File }

// Reserve implements File. vfat forgets room beyond the end when the file is
// put away, so the file stays open until its length has been written.
func (f mountedFile) Reserve(size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Truncating to the length it has takes away the room that an earlier,
	// interrupted Reserve left. Seen without it on Linux 6.12: "clusters badly
	// computed", and the file system is read-only from then on.
	if err := f.Truncate(info.Size()); err != nil {
		return fmt.Errorf("trim %s: %w", f.Name(), err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil {
		return fmt.Errorf("reserve %d bytes for %s: %w", size, f.Name(), err)
	}
	return nil
}
