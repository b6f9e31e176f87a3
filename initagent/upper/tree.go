package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// The overlay's extended attributes (kernel documentation, filesystems/overlayfs.rst).
const (
	overlayPrefix = "trusted.overlay."
	opaque        = overlayPrefix + "opaque"   // "y"
	whiteout      = overlayPrefix + "whiteout" // of an empty file, in place of a device 0:0
	redirect      = overlayPrefix + "redirect"
	metacopy      = overlayPrefix + "metacopy"
	// protected holds what chattr made of a file through the overlay: immutable, append only.
	protected = overlayPrefix + "protattr"
	// unprivileged begins those of an overlay that was mounted without privileges.
	unprivileged = "user.overlay."
)

// maxXattrs bounds the names and each value of a file's extended attributes in
// bytes; Linux has no larger ones (xattr(7)).
const maxXattrs = 64 << 10

// evm is a signature over a file's attributes by a key of the machine, which the kernel
// makes itself and lets nobody set (Linux, security/integrity/evm).
const evm = "security.evm"

// maxPath bounds a path below a tree's directory in bytes: openat2(2) takes 4,095.
const maxPath = 4000

// A tree is a directory that is read without following a link, opening a device, or
// leaving its file system. It implements etcmerge.Tree.
type tree struct {
	name  string // for errors
	fd    int
	upper bool // whiteouts and opaque directories mean something
	plain bool // extended attributes are not read
	buf   []byte
	// lower is the image that an upper directory lies on; nil where it is not known.
	lower *tree
	shown map[string]showing // see shows
	// leftOut is told what cannot be read as what it is; nil tells nobody.
	leftOut func(path, why string)
}

// leave says that an entry, or a part of it, is left out.
func (t *tree) leave(path, why string) {
	if t.leftOut != nil {
		t.leftOut(path, why)
	}
}

func openTree(root int, name, directory string, upper bool) (*tree, error) {
	fd, err := beneath(root, directory, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return &tree{name: name, fd: fd, upper: upper, buf: make([]byte, maxXattrs)}, nil
}

func (t *tree) Close() error { return unix.Close(t.fd) }

// beneath opens what lies below a directory, without a link on the way.
func beneath(root int, name string, flags uint64) (int, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// look opens a path for its attributes alone. What lies below a link, or below what is
// not a directory, is not there.
func (t *tree) look(path string) (int, error) {
	fd, err := beneath(t.fd, path, unix.O_PATH)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return -1, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return -1, t.fault(err)
	}
	return fd, err
}

func (t *tree) fault(err error) error { return fmt.Errorf("%s: %w", t.name, err) }

// Entry implements etcmerge.Tree. What lies too deep is not there.
func (t *tree) Entry(path string) (etcmerge.Entry, error) {
	if len(path) > maxPath {
		t.leave(path, fmt.Sprintf("left out: its path has more than %d bytes", maxPath))
		return etcmerge.Entry{}, missing(path, nil)
	}
	e, xattrs, err := t.raw(path)
	if errors.Is(err, fs.ErrNotExist) && t.upper && t.lower != nil {
		return t.entryBelow(path)
	}
	if err == nil && t.upper {
		err = t.overlaid(path, &e, xattrs)
	}
	if err != nil {
		return etcmerge.Entry{}, err
	}
	if e.Type == etcmerge.Directory && strings.Count(path, "/") >= etcmerge.MaxDepth-1 {
		t.leave(path, fmt.Sprintf("left out: it lies within %d directories", etcmerge.MaxDepth-1))
		return etcmerge.Entry{}, missing(path, nil)
	}
	for name := range xattrs {
		if strings.HasPrefix(name, overlayPrefix) || strings.HasPrefix(name, unprivileged) || name == evm {
			delete(e.Xattrs, name)
		}
	}
	return e, nil
}

// raw is what lies at a path, with all of its attributes.
func (t *tree) raw(path string) (etcmerge.Entry, map[string]string, error) {
	fd, err := t.look(path)
	if err != nil {
		return etcmerge.Entry{}, nil, err
	}
	defer unix.Close(fd)
	e, xattrs, err := t.entry(fd, path)
	if err != nil {
		return etcmerge.Entry{}, nil, t.fault(&fs.PathError{Op: "read", Path: path, Err: err})
	}
	return e, xattrs, nil
}

// inode is the file that a path leads to, and whether it has several names. What comes from
// an image has one.
func (t *tree) inode(path string) (i inode, several bool, err error) {
	fd, err := t.look(path)
	if errors.Is(err, fs.ErrNotExist) {
		return inode{}, false, nil
	}
	if err != nil {
		return inode{}, false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return inode{}, false, t.fault(err)
	}
	return inode{st.Dev, st.Ino}, st.Nlink > 1, nil
}

var types = map[uint32]etcmerge.Type{
	unix.S_IFREG: etcmerge.Regular, unix.S_IFDIR: etcmerge.Directory, unix.S_IFLNK: etcmerge.Link, unix.S_IFCHR: etcmerge.CharDevice,
	unix.S_IFBLK: etcmerge.BlockDevice, unix.S_IFIFO: etcmerge.Pipe, unix.S_IFSOCK: etcmerge.Socket,
}

func (t *tree) entry(fd int, path string) (etcmerge.Entry, map[string]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return etcmerge.Entry{}, nil, err
	}
	e := etcmerge.Entry{Type: types[st.Mode&unix.S_IFMT], Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())}
	var xattrs map[string]string
	var err error
	if !t.plain {
		if xattrs, err = t.xattrs(fd, path); err != nil {
			return e, nil, err
		}
	}
	switch e.Type {
	case etcmerge.Regular:
		e.Size = st.Size
	case etcmerge.CharDevice, etcmerge.BlockDevice:
		e.Rdev = st.Rdev
	case etcmerge.Link:
		e.Mode = 0o777
		if e.Target, err = readlink(fd); err != nil {
			return e, nil, err
		}
	}
	e.Xattrs = maps.Clone(xattrs)
	return e, xattrs, nil
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), err
}

// handle is a path that leads to an open file itself, whatever its type: the calls
// for extended attributes take no descriptor that was opened for its attributes alone.
func handle(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (t *tree) xattrs(fd int, path string) (map[string]string, error) {
	n, err := unix.Listxattr(handle(fd), t.buf)
	if errors.Is(err, unix.E2BIG) {
		t.leave(path, "its extended attributes are left out, but for those of the system: they have more names than can be listed")
		return t.values(fd, listless, func(err error) bool { return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) })
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := slices.Collect(strings.SplitSeq(strings.TrimSuffix(string(t.buf[:n]), "\x00"), "\x00"))
	return t.values(fd, names, func(error) bool { return false })
}

// listless are the attributes that are asked for by name where they cannot be listed:
// without them a directory would show what was removed from it, or more people might read it.
var listless = []string{
	opaque, whiteout, redirect, metacopy, protected, accessList, "system.posix_acl_default", capability, "security.selinux",
}

// values are those of extended attributes; none is where passes says so of the error.
func (t *tree) values(fd int, names []string, passes func(error) bool) (map[string]string, error) {
	out := map[string]string{}
	for _, name := range names {
		size, err := unix.Getxattr(handle(fd), name, t.buf)
		if err != nil && passes(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		out[name] = string(t.buf[:size])
	}
	return out, nil
}

// Names implements etcmerge.Tree.
func (t *tree) Names(path string) ([]string, error) {
	names, err := t.names(path)
	if !t.upper || t.lower == nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return names, err
	}
	below, moved, berr := t.namesBelow(path)
	if berr != nil || !moved {
		return names, errors.Join(err, berr)
	}
	// What the upper directory has goes over it, and may hide it.
	below = slices.DeleteFunc(below, func(n string) bool { return slices.Contains(names, n) })
	return append(below, names...), nil
}

func (t *tree) names(path string) ([]string, error) {
	fd, err := beneath(t.fd, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, t.fault(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(etcmerge.MaxEntries + 1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, t.fault(err)
	case len(names) > etcmerge.MaxEntries:
		return nil, t.fault(fmt.Errorf("directory %s has more than %d entries", path, etcmerge.MaxEntries))
	}
	return names, nil
}

// Open implements etcmerge.Tree.
func (t *tree) Open(path string) (io.ReadCloser, error) {
	if t.upper {
		if f, err := t.openBelow(path); f != nil || err != nil {
			return f, err
		}
	}
	fd, err := t.look(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, t.fault(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, t.fault(fmt.Errorf("%s is not a regular file", path))
	}
	f, err := os.Open(handle(fd)) // the file that was looked at, and no other
	if err != nil {
		return nil, t.fault(fmt.Errorf("%s: %w", path, err))
	}
	return f, nil
}
