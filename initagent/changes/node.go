package changes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A node is an entry of a tree, held by a descriptor that reads nothing (O_PATH): what is
// looked at, compared and opened is the same file, whatever takes its name meanwhile. A
// nil node is an entry that is not there.
type node struct {
	fd   int
	stat unix.Stat_t
}

// errLink says that a path leads through a link.
var errLink = errors.New("a symbolic link is on the way: name where it leads")

// open opens an entry below a directory without following any link on the way, nor at the
// end. No such entry is nil.
func open(root *os.File, rel string) (*node, error) {
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(int(root.Fd()), rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, errLink
	}
	return newNode(fd, err)
}

// below is open for a path that the other tree or a list has: where there is a link on the
// way, no such entry is there.
func below(root *os.File, rel string) (*node, error) {
	n, err := open(root, rel)
	if errors.Is(err, errLink) {
		return nil, nil
	}
	return n, err
}

func newNode(fd int, err error) (*node, error) {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := &node{fd: fd}
	if err := unix.Fstat(fd, &n.stat); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// child opens an entry of a directory; nil where there is none, or no directory.
func (n *node) child(name string) (*node, error) {
	if !n.isDirectory() {
		return nil, nil
	}
	return newNode(unix.Openat(n.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0))
}

func (n *node) close() {
	if n != nil {
		unix.Close(n.fd)
	}
}

func (n *node) format() uint32 { return n.stat.Mode & unix.S_IFMT }

func (n *node) isDirectory() bool { return n != nil && n.format() == unix.S_IFDIR }

func (n *node) isFile() bool { return n != nil && n.format() == unix.S_IFREG }

func (n *node) isLink() bool { return n != nil && n.format() == unix.S_IFLNK }

// kind is the entry's type, as people call it.
func (n *node) kind() string {
	switch n.format() {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// changed is when the content or else an attribute was.
func (n *node) changed(content bool) *time.Time {
	at := n.stat.Ctim
	if content {
		at = n.stat.Mtim
	}
	t := time.Unix(at.Unix()).UTC()
	return &t
}

// path names the open file itself: where it is used, no name is looked up again.
func (n *node) path() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

// file opens a regular file or a directory for reading, and nothing else: opening a pipe
// would wait, and opening a device may do anything.
func (n *node) file() (*os.File, error) {
	if !n.isFile() && !n.isDirectory() {
		return nil, fmt.Errorf("it is a %s", n.kind())
	}
	fd, err := unix.Open(n.path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.kind()), nil
}

// errMany says that a directory has more entries than are looked at.
var errMany = errors.New("too many entries")

// names lists a directory, at most limit entries.
func (n *node) names(limit int) ([]string, error) {
	f, err := n.file()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit + 1)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err == nil && len(names) > limit {
		err = fmt.Errorf("%w: more than %d", errMany, limit)
	}
	return names, err
}

func (n *node) link() (string, error) {
	b := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", b)
	if err != nil {
		return "", err
	}
	return string(b[:max(size, 0)]), nil
}

// sameContent compares two regular files of the same size. The image bounds the size.
func sameContent(a, b *node) (bool, error) {
	if a.stat.Size != b.stat.Size {
		return false, nil
	}
	f, err := a.file()
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := b.file()
	if err != nil {
		return false, err
	}
	defer g.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, x)
		m, errs := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		for _, e := range []error{err, errs} {
			if e != nil && !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) {
				return false, e
			}
		}
		if err != nil || errs != nil {
			return true, nil
		}
	}
}

// maxXattrs bounds the names and each value of a file's extended attributes in bytes;
// Linux has no larger ones (xattr(7)).
const maxXattrs = 64 << 10

// xattrs are the entry's extended attributes, ACLs and capabilities among them.
func (n *node) xattrs() (map[string]string, error) {
	size, err := unix.Listxattr(n.path(), nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	buffer := make([]byte, maxXattrs)
	if err == nil {
		size, err = unix.Listxattr(n.path(), buffer)
	}
	if err != nil {
		return nil, fmt.Errorf("list its extended attributes: %w", err)
	}
	all := map[string]string{}
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(string(buffer[:size]), "\x00") {
		if name == "" {
			continue // the end; an overlay counts its own, which it does not list
		}
		size, err := unix.Getxattr(n.path(), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", Shown(name), err)
		}
		all[name] = string(value[:size])
	}
	return all, nil
}

// differences says in words what differs between two entries of one name, and whether
// their content does. The times do not count: a file that was given back has its own.
func differences(merged, image *node, to owners) (content bool, what []string, err error) {
	if merged.format() != image.format() {
		return true, []string{fmt.Sprintf("a %s, in the image a %s", merged.kind(), image.kind())}, nil
	}
	switch {
	case merged.isFile():
		same, err := sameContent(merged, image)
		if err != nil {
			return false, nil, err
		}
		if !same {
			content, what = true, append(what, "content")
		}
	case merged.isLink():
		here, err := merged.link()
		if err != nil {
			return false, nil, err
		}
		there, err := image.link()
		if err != nil {
			return false, nil, err
		}
		if here != there {
			content, what = true, append(what, fmt.Sprintf("leads to %s, in the image to %s", Shown(here), Shown(there)))
		}
	case merged.kind() == "device" && merged.stat.Rdev != image.stat.Rdev:
		content, what = true, append(what, "device number")
	}
	more, err := attributes(merged, image, to)
	return content, append(what, more...), err
}

// attributes says how owner, mode and extended attributes differ.
func attributes(merged, image *node, to owners) (what []string, err error) {
	want, err := to.of(image)
	if err != nil {
		return nil, err
	}
	mode := func(m uint32) string { return fmt.Sprintf("%04o", m&0o7777) }
	if m := merged.stat.Mode; mode(m) != mode(want.Mode) {
		what = append(what, stated("mode", mode(m), mode(image.stat.Mode), mode(want.Mode)))
	}
	owner := func(user, group uint32) string { return fmt.Sprintf("%d:%d", user, group) }
	if st := merged.stat; st.Uid != want.UID || st.Gid != want.GID {
		what = append(what, stated("owner", owner(st.Uid, st.Gid), owner(image.stat.Uid, image.stat.Gid), owner(want.UID, want.GID)))
	}
	here, err := merged.xattrs()
	if err != nil {
		return nil, err
	}
	for _, name := range unequal(here, want.Xattrs) {
		what = append(what, "extended attribute "+Shown(name))
	}
	return what, nil
}
