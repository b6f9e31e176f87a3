// Package rootfs puts a root file system into a staging folder and completes it
// to what a system image holds.
//
// It refuses whatever would leave the staging folder: names with "..",
// absolute names, names below a symbolic link. It never changes the source,
// never follows a link of the tree out of it, and never drops an owner or an
// attribute silently: what it may not set, it reports.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/block"
)

// Kind is the type of a file.
type Kind uint8

// Kinds. The zero value is none.
const (
	Directory Kind = iota + 1
	Regular
	Symlink
	HardLink
	CharDevice
	BlockDevice
	FIFO
)

// An Entry is one file of a tree.
type Entry struct {
	Name     string // slash-separated, relative to the tree; "." is its top
	Kind     Kind
	Mode     uint32 // permission, set-ID and sticky bits: 07777
	UID, GID int
	ModTime  time.Time
	Size     int64  // of a regular file's content, in bytes
	Target   string // a symbolic link's text, or the name that a hard link is another name of
	Major    uint32 // of a device
	Minor    uint32
	Xattrs   map[string]string
}

// Limits of a tree. They only keep a broken source from filling the disk.
const (
	maxBytes   = 64 << 30
	maxEntries = 8 << 20
)

// A Tree is a root file system in a staging folder. Close removes nothing: the
// folder belongs to the caller.
type Tree struct {
	dir  string
	root *os.Root
	last *parent // that of the file before; nil for none
	// dirs are all directories of the tree; their attributes are set by Seal,
	// since writing into them changes their time and may need permissions
	// that they do not give.
	dirs    map[string]*Entry
	bytes   int64
	limit   int64 // of bytes
	entries int
	newest  time.Time
	squash  bool // not root: every file becomes root's in the image
}

// NewTree makes an empty tree in an empty folder that only the caller may read.
func NewTree(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open staging folder: %w", err)
	}
	t := &Tree{dir: dir, root: root, limit: maxBytes, dirs: make(map[string]*Entry), squash: os.Geteuid() != 0}
	t.dirs["."] = implied(".")
	return t, nil
}

// Close releases the staging folder.
func (t *Tree) Close() error { return errors.Join(t.leave(), t.root.Close()) }

// Dir is the staging folder.
func (t *Tree) Dir() string { return t.dir }

// Squash reports that the tree was made without root's rights, so that the
// owners in it are the caller and stand for root.
func (t *Tree) Squash() bool { return t.squash }

// Newest is the latest modification time among the files that are no
// directories; the zero time for a tree without any.
func (t *Tree) Newest() time.Time { return t.newest }

// implied is a directory that was not in the source, its time left to Seal.
func implied(name string) *Entry {
	return &Entry{Name: name, Kind: Directory, Mode: 0o755}
}

// cleanName returns the form of a name that the tree uses.
func cleanName(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("file without a name")
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("%q is an absolute name", name)
	case strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%q has a NUL byte", name)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", fmt.Errorf("%q leads out of the tree", name)
	}
	return path.Clean(name), nil
}

// Put adds a file and replaces what had its name, but a directory keeps what
// is in it when another directory comes. Content is read for a regular file
// only and must have e.Size bytes.
func (t *Tree) Put(e Entry, content io.Reader) error {
	name, err := cleanName(e.Name)
	if err != nil {
		return err
	}
	e.Name = name
	if err := t.admit(e); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if e.Kind == Directory {
		err = t.putDirectory(e)
	} else {
		err = t.putFile(e, content)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// admit checks what must not exceed a limit or cannot be kept.
func (t *Tree) admit(e Entry) error {
	if t.entries++; t.entries > maxEntries {
		return fmt.Errorf("the tree has more than %d files", maxEntries)
	}
	if e.Kind == Regular {
		if e.Size < 0 || e.Size > t.limit-t.bytes {
			return fmt.Errorf("the tree has more than %d bytes", t.limit)
		}
		t.bytes += e.Size
	}
	if !t.squash || e.Kind == HardLink {
		return nil
	}
	if (e.UID != 0 || e.GID != 0) && (e.UID != os.Geteuid() || e.GID != os.Getegid()) {
		return fmt.Errorf("belongs to %d:%d, which only root can keep: run as root", e.UID, e.GID)
	}
	if e.Kind == CharDevice || e.Kind == BlockDevice {
		return errors.New("is a device, which only root can make: run as root")
	}
	return nil
}

func (t *Tree) putDirectory(e Entry) error {
	if e.Name == "." || t.dirs[e.Name] != nil {
		t.dirs[e.Name] = &e
		return nil
	}
	if err := t.makeRoom(e.Name); err != nil {
		return err
	}
	dir, err := t.parent(e.Name)
	if err != nil {
		return err
	}
	if err := dir.root.Mkdir(path.Base(e.Name), 0o700); err != nil {
		return err
	}
	t.dirs[e.Name] = &e
	return nil
}

func (t *Tree) putFile(e Entry, content io.Reader) error {
	if e.Name == "." {
		return errors.New("the top of the tree is not a directory")
	}
	if err := t.makeRoom(e.Name); err != nil {
		return err
	}
	if e.Kind != HardLink && e.ModTime.After(t.newest) {
		t.newest = e.ModTime
	}
	switch e.Kind {
	case Regular:
		return t.write(e, content)
	case Symlink:
		dir, err := t.parent(e.Name)
		if err != nil {
			return err
		}
		if err := dir.root.Symlink(e.Target, path.Base(e.Name)); err != nil {
			return err
		}
		return t.attributes(e)
	case HardLink:
		return t.link(e)
	case CharDevice, BlockDevice, FIFO:
		return t.node(e)
	}
	return fmt.Errorf("file of unknown kind %d", e.Kind)
}

// makeRoom makes the directories above a name and removes what has the name.
func (t *Tree) makeRoom(name string) error {
	if above := path.Dir(name); t.dirs[above] == nil {
		if err := t.makeParents(above); err != nil {
			return err
		}
	}
	dir, err := t.parent(name)
	if err != nil {
		return err
	}
	if _, err := dir.root.Lstat(path.Base(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return t.Remove(name)
}

func (t *Tree) makeParents(name string) error {
	if t.dirs[name] != nil {
		return nil
	}
	if err := t.makeParents(path.Dir(name)); err != nil {
		return err
	}
	if info, err := t.root.Lstat(name); err == nil {
		return fmt.Errorf("lies below %s, which is no directory (%s)", name, info.Mode().Type())
	}
	if err := t.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	t.dirs[name] = implied(name)
	return nil
}

// Remove takes a file, or a directory with all that is in it, out of the tree.
func (t *Tree) Remove(name string) error {
	if name == "." {
		return errors.New("the top of the tree cannot be removed")
	}
	if err := errors.Join(t.leave(), t.root.RemoveAll(name)); err != nil {
		return err
	}
	if t.dirs[name] != nil {
		maps.DeleteFunc(t.dirs, func(dir string, _ *Entry) bool {
			return dir == name || strings.HasPrefix(dir, name+"/")
		})
	}
	return nil
}

func (t *Tree) write(e Entry, content io.Reader) (err error) {
	dir, err := t.parent(e.Name)
	if err != nil {
		return err
	}
	f, err := dir.root.OpenFile(path.Base(e.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := copyContent(f, content, e.Size)
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	if n != e.Size {
		return fmt.Errorf("content ends after %d bytes of %d", n, e.Size)
	}
	return t.attributes(e)
}

// copyContent copies up to size bytes. A file is copied by the kernel, which
// can share its blocks; of other content, zeros become holes, so that a few
// bytes of a sparse archive cannot fill the disk.
func copyContent(f *os.File, content io.Reader, size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	limited := io.LimitReader(content, size)
	if _, ok := content.(*os.File); ok {
		return io.Copy(f, limited)
	}
	buf := make([]byte, min(size, 256<<10))
	for at := int64(0); ; {
		n, err := io.ReadFull(limited, buf)
		if n > 0 && !block.IsZero(buf[:n]) {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return at, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return at, f.Truncate(at)
		}
		if err != nil {
			return at, err
		}
	}
}

func (t *Tree) link(e Entry) error {
	target, err := cleanName(e.Target)
	if err != nil {
		return fmt.Errorf("hard link to %w", err)
	}
	if t.dirs[path.Dir(target)] == nil || t.dirs[target] != nil {
		return fmt.Errorf("hard link to %q, which is no file of the tree", target)
	}
	if err := t.root.Link(target, e.Name); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

func (t *Tree) node(e Entry) error {
	kind := map[Kind]uint32{CharDevice: unix.S_IFCHR, BlockDevice: unix.S_IFBLK, FIFO: unix.S_IFIFO}[e.Kind]
	dir, err := t.parent(e.Name)
	if err != nil {
		return err
	}
	if err := unix.Mknodat(dir.fd(), path.Base(e.Name), kind|0o600, int(unix.Mkdev(e.Major, e.Minor))); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	return t.attributes(e)
}

// A parent is a directory of the tree that is open for the files in it: the way
// there from the top takes some system calls for each part of its name.
type parent struct {
	name string
	root *os.Root
	file *os.File // of the same directory
}

func (p *parent) fd() int { return int(p.file.Fd()) }

// parent opens the directory that a name is in, until another one is asked for.
func (t *Tree) parent(name string) (*parent, error) {
	above := path.Dir(name)
	if t.last != nil && t.last.name == above {
		return t.last, nil
	}
	if err := t.leave(); err != nil {
		return nil, err
	}
	root, err := t.root.OpenRoot(above)
	if err != nil {
		return nil, err
	}
	file, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	t.last = &parent{above, root, file}
	return t.last, nil
}

// leave closes the directory that parent has opened.
func (t *Tree) leave() error {
	p := t.last
	if p == nil {
		return nil
	}
	t.last = nil
	return errors.Join(p.file.Close(), p.root.Close())
}

// attributes sets owner, mode, extended attributes and time, in this order:
// changing the owner takes set-ID bits and capabilities away.
func (t *Tree) attributes(e Entry) error {
	dir, err := t.parent(e.Name)
	if err != nil {
		return err
	}
	base := path.Base(e.Name)
	if !t.squash {
		if err := dir.root.Lchown(base, e.UID, e.GID); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err)
		}
	}
	if e.Kind != Symlink {
		if err := unix.Fchmodat(dir.fd(), base, e.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode %04o: %w", e.Mode, err)
		}
	}
	// There is no setxattrat yet; the descriptor's name in /proc is the
	// directory itself, and the last name is not followed.
	file := fmt.Sprintf("/proc/self/fd/%d/%s", dir.fd(), base)
	for _, key := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if err := unix.Lsetxattr(file, key, []byte(e.Xattrs[key]), 0); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", key, err)
		}
	}
	times := []unix.Timespec{unix.NsecToTimespec(e.ModTime.UnixNano()), unix.NsecToTimespec(e.ModTime.UnixNano())}
	if err := unix.UtimesNanoAt(dir.fd(), base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// Seal sets the attributes of all directories. Directories that were not in
// the source get the given time, and none gets a later one. Nothing can be
// added afterwards.
func (t *Tree) Seal(date time.Time) error {
	names := slices.Sorted(maps.Keys(t.dirs))
	slices.Reverse(names) // children first, while their parents can be entered
	for _, name := range names {
		e := *t.dirs[name]
		if e.ModTime.IsZero() || e.ModTime.After(date) {
			e.ModTime = date
		}
		if err := t.attributes(e); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// keepXattr reports whether an extended attribute belongs to the file rather
// than to the machine that the tree lay on.
func keepXattr(name string) bool {
	switch name {
	case "security.capability", "security.ima", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.")
}
