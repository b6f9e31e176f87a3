package hw

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/subvolume"
	"halogenos.internal/initagent/upper"
)

// Seed implements Store. The copy has owners, modes, times, links and extended
// attributes. It is complete and flushed before it gets its name: cut before
// the rename, it is made again; cut after it, it is there.
//
// Who mounts it follows its name, so that no link may be in that, either.
func (l LinuxStore) Seed(from, name string, asSubvolume bool) error {
	if err := l.noLink(name); err != nil {
		return fmt.Errorf("%s has to be a directory of the root partition, and neither a link nor in one (move what it leads to into its place): %w", name, err)
	}
	to := filepath.Join(l.Root, name)
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.MakeDirectory(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	dir, err := l.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	unfinished := name + newEnding
	if err := (upper.Store{Root: l.Root}).Erase(unfinished); err != nil {
		return err
	}
	if err := l.unfrozen(func() error { return makeTop(dir, filepath.Base(unfinished), asSubvolume) }, unfinished); err != nil {
		return err
	}
	if err := copyTree(from, filepath.Join(l.Root, unfinished)); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("flush the copy of %s: %w", from, err)
	}
	if err := l.unfrozen(func() error { return os.Rename(filepath.Join(l.Root, unfinished), to) }, unfinished); err != nil {
		return err
	}
	return dir.Sync()
}

// makeTop makes an empty directory; a subvolume, where that is wanted and the file system has
// them.
func makeTop(parent *os.File, name string, asSubvolume bool) error {
	btrfs, err := subvolume.Supported(int(parent.Fd()))
	if err != nil {
		return err
	}
	if asSubvolume && btrfs {
		return subvolume.Create(int(parent.Fd()), name)
	}
	return unix.Mkdirat(int(parent.Fd()), name, 0o700)
}

// copyTree copies a directory; the copy of its top is there, empty.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if rel != "." {
			if err := copyNode(path, target, d); err != nil {
				return err
			}
		}
		return copyAttributes(path, target)
	})
}

func copyNode(path, target string, d fs.DirEntry) error {
	switch d.Type() {
	case fs.ModeDir:
		return os.Mkdir(target, 0o700)
	case fs.ModeSymlink:
		link, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(link, target)
	case 0:
		return copyFile(path, target)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	return unix.Mknod(target, st.Mode, int(st.Rdev))
}

func copyFile(path, target string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// copyAttributes comes after the content: the owner before the mode, since
// changing it takes setuid away, and the times last.
func copyAttributes(path, target string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if err := unix.Lchown(target, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(target, st.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := copyXattrs(path, target); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, target, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// maxXattrs bounds the names and each value of a file's extended attributes in
// bytes; Linux has no larger ones (xattr(7)).
const maxXattrs = 64 << 10

func copyXattrs(path, target string) error {
	names := make([]byte, maxXattrs)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, maxXattrs)
	for _, name := range splitNames(names[:n]) {
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(target, name, value[:size], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}

func splitNames(list []byte) []string {
	var names []string
	start := 0
	for i, c := range list {
		if c == 0 {
			names = append(names, string(list[start:i]))
			start = i + 1
		}
	}
	return names
}
