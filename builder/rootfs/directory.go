package rootfs

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopyDirectory puts a copy of a directory into the tree. The source is only
// read. Sockets are left out (see Sockets); a file system mounted inside is refused, since
// /proc or a bind mount is nothing of the image's.
func (t *Tree) CopyDirectory(ctx context.Context, source string) error {
	root, err := os.OpenRoot(source)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	defer root.Close()
	top, err := root.Lstat(".")
	if err != nil {
		return err
	}
	c := &copier{tree: t, source: source, links: make(map[inode]string)}
	list, err := root.Open(".")
	if err != nil {
		return err
	}
	defer list.Close()
	if c.mount, err = mountOf(list, "."); err != nil {
		return err
	}
	return c.copy(ctx, root, ".", top)
}

type copier struct {
	tree   *Tree
	source string
	mount  uint64           // that the source lies on
	links  map[inode]string // first name of one that has several
}

// An inode is a file. One mount can have several devices, whose numbers of inodes overlap:
// an overlay has one for each file system that its layers lie on, btrfs one for each
// subvolume.
type inode struct{ device, number uint64 }

// mountOf returns the number of the mount that a file in a directory lies on (statx(2)).
// Before Linux 5.8 it is that of the device, which other mounts usually do not have.
func mountOf(dir *os.File, name string) (uint64, error) {
	var x unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	if x.Mask&unix.STATX_MNT_ID == 0 {
		return unix.Mkdev(x.Dev_major, x.Dev_minor), nil
	}
	return x.Mnt_id, nil
}

// copy copies the file of that name in the whole, which lies in the directory dir.
func (c *copier) copy(ctx context.Context, dir *os.Root, name string, info fs.FileInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := c.entry(dir, name, info, info.Sys().(*syscall.Stat_t))
	if err != nil {
		return err
	}
	if e.Kind == 0 {
		c.tree.sockets = append(c.tree.sockets, name)
		return nil
	}
	if e.Kind == Regular {
		f, err := dir.Open(path.Base(name))
		if err != nil {
			return err
		}
		defer f.Close()
		return c.tree.Put(e, f)
	}
	if err := c.tree.Put(e, nil); err != nil {
		return err
	}
	if e.Kind != Directory {
		return nil
	}
	inside, err := dir.OpenRoot(path.Base(name))
	if err != nil {
		return err
	}
	defer inside.Close()
	return c.children(ctx, inside, name)
}

func (c *copier) children(ctx context.Context, dir *os.Root, name string) error {
	list, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return fmt.Errorf("list %s: %w", filepath.Join(c.source, name), err)
	}
	opened, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer opened.Close()
	for _, child := range list {
		mount, err := mountOf(opened, child.Name())
		if err != nil {
			return err
		}
		if mount != c.mount {
			return fmt.Errorf("on %s something is mounted: unmount it, or pack the root file system as a tar", filepath.Join(c.source, name, child.Name()))
		}
		info, err := dir.Lstat(child.Name())
		if err != nil {
			return err
		}
		if err := c.copy(ctx, dir, path.Join(name, child.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

// entryOf describes a file of a file system, but for its name, where a symbolic
// link leads, and its extended attributes. The kind is zero for a socket.
func entryOf(info fs.FileInfo) Entry {
	stat := info.Sys().(*syscall.Stat_t)
	e := Entry{
		Mode: stat.Mode & 0o7777, UID: int(stat.Uid), GID: int(stat.Gid), ModTime: info.ModTime(),
		Major: unix.Major(stat.Rdev), Minor: unix.Minor(stat.Rdev),
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Kind = Directory
	case unix.S_IFREG:
		e.Kind, e.Size = Regular, info.Size()
	case unix.S_IFLNK:
		e.Kind = Symlink
	case unix.S_IFCHR:
		e.Kind = CharDevice
	case unix.S_IFBLK:
		e.Kind = BlockDevice
	case unix.S_IFIFO:
		e.Kind = FIFO
	}
	return e
}

// entry describes a file of the source; its kind is zero for a socket.
func (c *copier) entry(dir *os.Root, name string, info fs.FileInfo, stat *syscall.Stat_t) (e Entry, err error) {
	e = entryOf(info)
	e.Name = name
	switch e.Kind {
	case 0:
		return e, nil
	case Symlink:
		if e.Target, err = dir.Readlink(path.Base(name)); err != nil {
			return e, err
		}
	}
	if e.Kind != Directory && stat.Nlink > 1 {
		file := inode{stat.Dev, stat.Ino}
		if first, ok := c.links[file]; ok {
			e.Kind, e.Target = HardLink, first
			return e, nil
		}
		c.links[file] = name
	}
	xattrs, err := readXattrs(filepath.Join(c.source, name))
	e.Xattrs = xattrs
	return e, err
}

// readXattrs returns the extended attributes that go into an image.
func readXattrs(file string) (map[string]string, error) {
	names, err := listXattrs(file)
	if err != nil {
		return nil, err
	}
	var xattrs map[string]string
	for _, name := range names {
		keep, err := keepXattr(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !keep {
			continue
		}
		value := make([]byte, maxXattrs)
		size, err := unix.Lgetxattr(file, name, value)
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s of %s: %w", name, file, err)
		}
		if xattrs == nil {
			xattrs = make(map[string]string)
		}
		xattrs[name] = string(value[:size])
	}
	return xattrs, nil
}
