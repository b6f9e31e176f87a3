// Package rootfs puts a root file system into a staging directory and completes it
// to what a system image holds.
//
// It refuses whatever would leave the staging directory, such as names with "..". Names
// in an archive are relative to the tree, and links on the way to them are resolved
// inside it, as when the tree is the root. It never changes the source, never follows
// a link of the tree out of it, and never drops an owner or an attribute silently:
// what it may not set, it reports.
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
	// ACLs are access control lists as text, by the name of the attribute that
	// they become when all accounts of the tree are known.
	ACLs map[string]string
}

// Limits of a tree. They only keep a broken source from filling the disk.
const (
	maxBytes   = 64 << 30 // that are written: holes are free
	maxFile    = 16 << 40 // bytes of one file, holes included: what ext4 can hold
	maxEntries = 8 << 20
	// maxNames is how many names a file can have: ext4's limit, whatever the file
	// system is, so that the image is the same everywhere.
	maxNames = 65_000
)

// A Tree is a root file system in a staging directory. Close removes nothing: the
// directory belongs to the caller.
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
	newest  Entry // without its content; no name where there is none
	oldest  Entry // likewise
	sparse  bool
	squash  bool                         // not root: every file becomes root's in the image
	acls    map[string]map[string]string // of names whose files' accounts are not resolved yet
	sockets []string                     // that were left out
	copies  map[uint64]string            // of files with too many names, by the inode number
	// maxNames is that of the constant; tests have fewer.
	maxNames uint64
}

// NewTree makes an empty tree in an empty directory that only the caller may read.
func NewTree(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open staging directory: %w", err)
	}
	t := &Tree{
		dir: dir, root: root, limit: maxBytes, squash: os.Geteuid() != 0,
		dirs: make(map[string]*Entry), acls: make(map[string]map[string]string), copies: make(map[uint64]string), maxNames: maxNames,
	}
	t.dirs["."] = implied(".")
	return t, nil
}

// Close releases the staging directory.
func (t *Tree) Close() error { return errors.Join(t.leave(), t.root.Close()) }

// Dir is the staging directory.
func (t *Tree) Dir() string { return t.dir }

// Squash reports that the tree was made without root's rights, so that the
// owners in it are the caller and stand for root.
func (t *Tree) Squash() bool { return t.squash }

// Newest is the latest modification time among the files that are not
// directories, and the file that has it; the zero time for a tree without any.
func (t *Tree) Newest() (time.Time, string) { return t.newest.ModTime, t.newest.Name }

// Sparse reports whether a file of the tree has so large a hole that it should
// not be stored.
func (t *Tree) Sparse() bool { return t.sparse }

// BeforeEpoch returns the name of a file that is dated before 1970, empty for
// none. Seal and Put give such files 1970-01-01: mkfs.erofs would take them for
// files of the far future.
func (t *Tree) BeforeEpoch() string { return t.oldest.Name }

// Sockets returns the names of the sockets that the source had. Only a program that
// listens makes one, and the tree has none.
func (t *Tree) Sockets() []string { return t.sockets }

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
	if err := errors.Join(e.whole(), e.countsHere()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
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
	for part := range strings.SplitSeq(e.Name, "/") {
		if len(part) > maxName {
			return fmt.Errorf("has a name of %d bytes (%.40q...), and EROFS and ext4 hold %d: give it a shorter one", len(part), part, maxName)
		}
	}
	if e.Kind == Symlink && (len(e.Target) == 0 || len(e.Target) > maxTarget) {
		return fmt.Errorf("is a symbolic link with a text of %d bytes, and Linux has 1 to %d", len(e.Target), maxTarget)
	}
	if e.Kind == Regular && (e.Size < 0 || e.Size > maxFile) {
		return fmt.Errorf("has %d bytes, more than %d", e.Size, int64(maxFile))
	}
	if e.Kind == HardLink {
		return nil
	}
	if e.UID < 0 || e.GID < 0 || e.UID >= maxID || e.GID >= maxID {
		return fmt.Errorf("belongs to %d:%d: owners are numbers from 0 to %d", e.UID, e.GID, maxID-1)
	}
	if !t.squash {
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

// maxTarget is the longest text of a symbolic link in bytes.
const maxTarget = 4095

// maxID is the first number that is not an account's: to Linux it means "leave
// the owner as it is".
const maxID = 1<<32 - 1

func (t *Tree) putDirectory(e Entry) error {
	if e.Name == "." || t.dirs[e.Name] != nil {
		t.remember(&e)
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
	t.remember(&e) // not before what had the name is gone, with what was noted of it
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
	if e.Kind != HardLink {
		if t.newest.Name == "" || e.ModTime.After(t.newest.ModTime) {
			t.newest = e
		}
		t.remember(&e)
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

// remember notes what of a file is not set right away.
func (t *Tree) remember(e *Entry) {
	if len(e.ACLs) > 0 {
		t.acls[e.Name] = e.ACLs
	} else {
		delete(t.acls, e.Name)
	}
	if e.Kind == Directory && e.Xattrs == nil {
		e.Xattrs = make(map[string]string)
	}
	if !e.ModTime.IsZero() && e.ModTime.Unix() < 0 && (t.oldest.Name == "" || e.ModTime.Before(t.oldest.ModTime)) {
		t.oldest = *e
	}
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
		return fmt.Errorf("lies below %s, which is not a directory (%s)", name, info.Mode().Type())
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
	delete(t.acls, name)
	if t.dirs[name] != nil {
		within := func(file string) bool { return file == name || strings.HasPrefix(file, name+"/") }
		maps.DeleteFunc(t.dirs, func(dir string, _ *Entry) bool { return within(dir) })
		maps.DeleteFunc(t.acls, func(file string, _ map[string]string) bool { return within(file) })
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
	n, written, err := copyContent(f, content, min(e.Size, maxFile), t.limit-t.bytes)
	t.bytes += written
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	if n != e.Size {
		return fmt.Errorf("content ends after %d bytes of %d", n, e.Size)
	}
	t.sparse = t.sparse || n-written >= leastHoles
	return t.attributes(e)
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
// changing the owner takes set-ID bits and capabilities away. The host's attributes go
// after the mode: with an access control list a mode's group bits are the list's mask.
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
	if err := t.clearHost(dir, base, e.Xattrs); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if err := setXattr(dir, base, key, e.Xattrs[key]); err != nil {
			return err
		}
	}
	at := unix.Timespec{Sec: e.ModTime.Unix(), Nsec: int64(e.ModTime.Nanosecond())} // UnixNano ends in 2262
	if at.Sec < 0 {
		at = unix.Timespec{}
	}
	if err := unix.UtimesNanoAt(dir.fd(), base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// setXattr sets an extended attribute of a file in a directory.
func setXattr(dir *parent, base, key, value string) error {
	err := unix.Lsetxattr(dir.path(base), key, []byte(value), 0)
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return fmt.Errorf("set extended attribute %s: the file system of --out cannot hold it (%w): give a directory on ext4, XFS or btrfs", key, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("set extended attribute %s: %w: run as root", key, err)
	case err != nil:
		return fmt.Errorf("set extended attribute %s: %w", key, err)
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
