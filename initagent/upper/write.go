package upper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// A writer makes what did not exist before, below one directory. It replaces and
// follows nothing. Nothing else runs meanwhile.
type writer struct {
	fd int // of the directory
	// step is called before each change of the file system. Tests cut there.
	step func(what string) error
	// leftOut is told what cannot be made here. One entry must not keep a machine from
	// its update, or from starting.
	leftOut func(path, why string)
	path    string // of what is being made, for leftOut
	buf     []byte
	links   map[inode]string // files that are made, by what they are made from
}

func newWriter(fd int, step func(string) error, leftOut func(path, why string)) *writer {
	return &writer{fd: fd, step: step, leftOut: leftOut, buf: make([]byte, 128<<10)}
}

// write makes the upper directory that a plan describes. The directory itself exists;
// it looks like top, unless the plan says what it looks like.
func (w *writer) write(r *etcmerge.Result, top etcmerge.Entry, sources map[etcmerge.Source]*tree, done func()) error {
	directories := []etcmerge.Change{{Path: ".", Entry: top}}
	var missing []string
	for _, c := range r.Changes {
		done()
		switch {
		case c.Action == etcmerge.Take, slices.ContainsFunc(missing, func(d string) bool { return strings.HasPrefix(c.Path, d+"/") }):
			continue
		case c.Path == ".":
			directories[0] = c
			continue
		}
		switch err := w.make(c, sources); {
		case unfit(err):
			missing = append(missing, c.Path)
			w.leftOut(c.Path, "left out: "+err.Error())
			if err := w.remove(c.Path); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("make %s: %w", c.Path, err)
		case c.Entry.Type == etcmerge.Directory:
			directories = append(directories, c)
		}
	}
	// Their times last, and those within before those around: each entry changes them.
	for _, c := range slices.Backward(directories) {
		if err := w.finish(c.Path, c.Entry); err != nil {
			return fmt.Errorf("make %s: %w", c.Path, err)
		}
		if before := sources[etcmerge.FromUpper]; before != nil {
			if err := w.protectIn(c.Path, before); err != nil {
				return fmt.Errorf("make %s: %w", c.Path, err)
			}
		}
	}
	return nil
}

// unfit reports whether an error is of what was to be made, and not of the file system
// or its room: nothing else needs to fail for it. EROFS is that of a read-only subvolume,
// which the owner of a shared directory can make in it; where all of the root partition is
// read-only, nothing of a system's own can be made either, and that fails.
func unfit(err error) bool {
	return slices.ContainsFunc([]unix.Errno{
		unix.EPERM, unix.EROFS, unix.EACCES, unix.EINVAL, unix.ENAMETOOLONG, unix.ENOTSUP, unix.EFBIG, unix.EOVERFLOW, unix.E2BIG, unix.ERANGE,
	}, func(e unix.Errno) bool { return errors.Is(err, e) })
}

// remove takes away what there is of an entry that was left out.
func (w *writer) remove(name string) error {
	parent, err := beneath(w.fd, path.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(parent), name)
	defer f.Close()
	return remove(f, path.Base(name), w.step)
}

// make makes one entry, complete but for a directory's attributes, which come last:
// what an overlay hides in it has to be there before.
func (w *writer) make(c etcmerge.Change, sources map[etcmerge.Source]*tree) error {
	parent, err := beneath(w.fd, path.Dir(c.Path), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	name := path.Base(c.Path)
	w.path = c.Path
	if linked, err := w.link(parent, name, c, sources); linked || err != nil {
		return err
	}
	var content io.Reader
	if c.Entry.Type == etcmerge.Regular {
		f, err := open(c, sources)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f
	}
	if err := w.node(parent, name, c.Entry, content); err != nil {
		return err
	}
	switch c.Entry.Type {
	case etcmerge.Whiteout, etcmerge.Directory:
		return nil
	case etcmerge.Regular:
		if c.From == etcmerge.FromUpper {
			if err := w.protect(parent, name, c.Path, sources[etcmerge.FromUpper]); err != nil {
				return err
			}
		}
	}
	return w.attributes(parent, name, c.Entry)
}

// inode is a file, whatever its names.
type inode struct{ dev, number uint64 }

// link has two names of one file of this machine's be two names again.
func (w *writer) link(parent int, name string, c etcmerge.Change, sources map[etcmerge.Source]*tree) (bool, error) {
	if c.Entry.Type != etcmerge.Regular || c.From != etcmerge.FromUpper || c.Action != etcmerge.Keep {
		return false, nil
	}
	file, several, err := sources[etcmerge.FromUpper].inode(c.Path)
	if !several || err != nil {
		return false, err
	}
	first, made := w.links[file]
	if !made {
		if w.links == nil {
			w.links = map[inode]string{}
		}
		w.links[file] = c.Path
		return false, nil
	}
	fd, err := beneath(w.fd, first, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) { // it is left out
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := w.step("link " + name); err != nil {
		return false, err
	}
	return true, unix.Linkat(unix.AT_FDCWD, handle(fd), parent, name, unix.AT_SYMLINK_FOLLOW)
}

func open(c etcmerge.Change, sources map[etcmerge.Source]*tree) (io.ReadCloser, error) {
	if c.From == etcmerge.FromContent {
		return io.NopCloser(strings.NewReader(string(c.Content))), nil
	}
	from := sources[c.From]
	if from == nil {
		return nil, fmt.Errorf("its content is to come from %d, which is not there", c.From)
	}
	f, err := from.Open(c.Path)
	if c.From != etcmerge.FromBase {
		return f, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
	}
	return ofBase{f}, nil
}

// ofBase marks errors of reading the image before.
type ofBase struct{ io.ReadCloser }

func (b ofBase) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
	}
	return n, err
}

// node makes the entry itself.
func (w *writer) node(parent int, name string, e etcmerge.Entry, content io.Reader) error {
	if err := w.step("make " + name); err != nil {
		return err
	}
	switch e.Type {
	case etcmerge.Directory:
		return unix.Mkdirat(parent, name, 0o700)
	case etcmerge.Link:
		return unix.Symlinkat(e.Target, parent, name)
	case etcmerge.Regular:
		return w.file(parent, name, content)
	case etcmerge.Whiteout:
		return unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	}
	for mode, t := range types {
		if t == e.Type {
			return unix.Mknodat(parent, name, mode|0o600, int(e.Rdev))
		}
	}
	return fmt.Errorf("it is of no known type (%d)", e.Type)
}

func (w *writer) file(parent int, name string, content io.Reader) error {
	fd, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	return errors.Join(w.fill(f, content), f.Close())
}

// fill writes a file's content. Holes in it stay holes, and what is zero becomes one: a file
// of terabytes can take no room.
func (w *writer) fill(f *os.File, content io.Reader) error {
	size := int64(0)
	for {
		hole, err := skipHole(content)
		if err != nil {
			return err
		}
		size += hole
		n, err := io.ReadFull(content, w.buf)
		if n == 0 && errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if serr := w.step("write " + f.Name()); serr != nil {
			return serr
		}
		if slices.ContainsFunc(w.buf[:n], func(b byte) bool { return b != 0 }) {
			if _, err := f.WriteAt(w.buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
	}
	return f.Truncate(size)
}

// skipHole passes over a hole of a file that is read, and returns how long it is.
func skipHole(content io.Reader) (int64, error) {
	f, ok := content.(*os.File)
	if !ok {
		return 0, nil
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	data, err := f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // there is none from here on
		data, err = f.Seek(0, io.SeekEnd)
	}
	if errors.Is(err, unix.EINVAL) { // the file system knows no holes
		return 0, nil
	}
	return data - at, err
}

// attributes comes after the content: the owner before the mode, since changing it
// takes setuid away and capabilities, and the times last.
func (w *writer) attributes(parent int, name string, e etcmerge.Entry) error {
	if err := w.step("owner and mode of " + name); err != nil {
		return err
	}
	if err := unix.Fchownat(parent, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.Type != etcmerge.Link {
		if err := unix.Fchmodat(parent, name, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	for key, value := range e.Xattrs {
		err := w.xattr(parent, name, key, value)
		if unfit(err) || errors.Is(err, unix.ENOSPC) && w.room() {
			w.leftOut(w.path, "left out: "+err.Error())
			err = nil
			if key == accessList {
				err = unix.Fchmodat(parent, name, withoutList(e.Mode, value), 0)
			}
		}
		if err != nil {
			return err
		}
	}
	modified := unix.NsecToTimespec(e.ModTime.UnixNano())
	return unix.UtimesNanoAt(parent, name, []unix.Timespec{modified, modified}, unix.AT_SYMLINK_NOFOLLOW)
}

// accessList is a POSIX access control list, as Linux has it in an attribute
// (include/uapi/linux/posix_acl_xattr.h).
const accessList = "system.posix_acl_access"

// withoutList is the mode of a file that is to have an access control list, and does not
// get it. With a list the mode has the most that anybody but owner and others may do in
// the place of what the group may (acl(5)).
func withoutList(mode uint32, list string) uint32 {
	const header, entry, groupObj = 4, 8, 4
	group := uint32(0)
	for at := header; at+entry <= len(list); at += entry {
		if e := []byte(list[at:]); binary.LittleEndian.Uint16(e) == groupObj {
			group = uint32(binary.LittleEndian.Uint16(e[2:])) & 7
		}
	}
	return mode & 0o7777 & (0o7707 | group<<3)
}

// room reports whether the file system has some left: ext4 says that there is none where
// an attribute is too large, too.
func (w *writer) room() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(w.fd, &st) == nil && st.Bfree*uint64(st.Bsize) > 1<<20 && (st.Files == 0 || st.Ffree > 0)
}

// finish gives a directory its attributes.
func (w *writer) finish(name string, e etcmerge.Entry) error {
	parent := w.fd
	w.path = name
	if name != "." {
		fd, err := beneath(w.fd, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		parent = fd
	}
	if e.Opaque {
		if err := w.xattr(parent, path.Base(name), opaque, "y"); err != nil {
			return err
		}
	}
	return w.attributes(parent, path.Base(name), e)
}

func (w *writer) xattr(parent int, name, key, value string) error {
	if err := w.step("attribute " + key + " of " + name); err != nil {
		return err
	}
	if err := unix.Lsetxattr(handle(parent)+"/"+name, key, []byte(value), 0); err != nil {
		return fmt.Errorf("attribute %s: %w", key, err)
	}
	return nil
}

// protectIn keeps what chattr made of a directory.
func (w *writer) protectIn(name string, from *tree) error {
	parent := w.fd
	if name != "." {
		fd, err := beneath(w.fd, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		parent = fd
	}
	return w.protect(parent, path.Base(name), name, from)
}

// protect keeps what chattr made of a file or directory of this machine's. The overlay has written it
// beside the file (Linux 5.15), as nothing that is merged.
func (w *writer) protect(parent int, name, path string, from *tree) error {
	_, xattrs, err := from.raw(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it came with a directory of the image before
	}
	if err != nil {
		return err
	}
	if value, there := xattrs[protected]; there {
		return w.xattr(parent, name, protected, value)
	}
	return nil
}
