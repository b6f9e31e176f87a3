package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// The entry whose account files lead from the image's users to this machine's, and the
// one that has systemd's note about the image.
const (
	etc      = "/etc"
	variable = "/var"
)

// Names of what is not complete yet: in [Directory], where root alone can go, and beside
// its place, where that is on another file system or subvolume. Whoever may write there
// can have taken the name: what has it goes, whatever it is.
const (
	temporary = "new" + unfinished
	beside    = ".halogen" + unfinished
)

// bind gives a shared directory what a new image has and this machine lacks. One that
// is not there is seeded from the image as a whole when it is mounted.
func (m *maker) bind(e stateconf.Entry) error {
	base, image, _, err := m.trees(e.Path, false)
	if err != nil {
		return err
	}
	defer closeTrees(base, image)
	if image == nil {
		return nil
	}
	name := path.Join(Bind, Name(e.Path))
	own, err := openTree(m.root, name, name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return m.seed(e, image)
	}
	if err != nil {
		return err
	}
	defer own.Close()
	f := &fill{maker: m, entryPath: e.Path, base: base, image: image, own: own}
	if err := f.directory("."); err != nil {
		return err
	}
	if e.Path != variable {
		return nil
	}
	return f.forget(updated)
}

// seed makes a shared directory that is not there, where the image's numbers of users or
// groups mean others here: who mounts it copies it as it is.
func (m *maker) seed(e stateconf.Entry, image *tree) error {
	if len(m.users)+len(m.groups) == 0 {
		return nil
	}
	top, err := image.Entry(".")
	if err != nil {
		return err
	}
	all, err := makeDirectory(m.root, Bind, 0o755, m.Step)
	if err != nil {
		return err
	}
	defer all.Close()
	if err := remove(m.all, seeding, m.Step); err != nil {
		return err
	}
	fresh, err := makeDirectory(int(m.all.Fd()), seeding, 0o700, m.Step)
	if err != nil {
		return err
	}
	defer fresh.Close()
	own := &tree{name: seeding, fd: int(fresh.Fd()), buf: make([]byte, maxXattrs)}
	f := &fill{maker: m, entryPath: e.Path, image: image, own: own, whole: true}
	if err := f.directory("."); err != nil {
		return err
	}
	m.owners().Translate(&top)
	if err := newWriter(int(m.all.Fd()), m.Step, m.leftOut(e.Path)).attributes(int(m.all.Fd()), seeding, top); err != nil {
		return err
	}
	if err := m.Step("flush " + seeding); err != nil {
		return err
	}
	if err := unix.Syncfs(int(fresh.Fd())); err != nil {
		return err
	}
	if err := m.Step("rename " + seeding); err != nil {
		return err
	}
	return unix.Renameat(int(m.all.Fd()), seeding, int(all.Fd()), Name(e.Path))
}

// seeding is the name of a shared directory that is being made.
const seeding = "bind" + unfinished

// owners leads from the image's users and groups to this machine's.
func (m *maker) owners() etcmerge.Owners {
	return etcmerge.Owners{Users: m.users, Groups: m.groups}
}

// fill is one shared directory.
type fill struct {
	*maker
	entryPath        string
	base, image, own *tree // base is nil where it is not known
	whole            bool  // it is being made
	looked           int
}

// directory goes through a directory that both the image and this machine have.
//
// What is new is made under a name of its own, with owner, mode and attributes, and
// renamed: cut before that, it is missing still; cut after it, it is this machine's,
// which is not touched again. A directory is empty when it gets its name, and is filled
// by the next attempt.
func (f *fill) directory(directory string) error {
	names, err := f.image.Names(directory)
	if err != nil {
		return err
	}
	for _, name := range names {
		if f.looked++; f.looked > etcmerge.MaxEntries {
			return fmt.Errorf("the image has more than %d entries", etcmerge.MaxEntries)
		}
		if err := f.entry(path.Join(directory, name)); err != nil {
			return err
		}
	}
	return nil
}

func (f *fill) entry(name string) error {
	fresh, err := f.entryOf(f.image, name)
	if err != nil || fresh == nil {
		return err
	}
	have, err := f.entryOf(f.own, name)
	if err != nil {
		return err
	}
	was, err := f.was(name)
	if err != nil {
		return err
	}
	switch {
	case have == nil && f.deleted(was, fresh):
		return nil
	case have == nil:
		if err := f.appear(name, *fresh); err != nil {
			return err
		}
		if have, err = f.entryOf(f.own, name); err != nil || have == nil {
			return err // it is left out
		}
	case f.follows(name, was, have, fresh):
		l := link{Entry: etcmerge.Name(f.entryPath), Path: etcmerge.Name(name), From: etcmerge.Name(have.Target), To: etcmerge.Name(fresh.Target)}
		if !slices.Contains(f.links, l) {
			f.links = append(f.links, l)
		}
	}
	if fresh.Type != etcmerge.Directory || have.Type != etcmerge.Directory {
		return nil
	}
	return f.directory(name)
}

// deleted reports whether what is missing here was deleted by somebody. Releases that kept
// one state for all systems never made what a later image brought: a directory that such
// a machine lacks may be one of those, and a link costs nothing.
func (f *fill) deleted(was, fresh *etcmerge.Entry) bool {
	kind := fresh.Type
	switch {
	case f.whole:
		return false
	case kind != etcmerge.Directory && kind != etcmerge.Regular && kind != etcmerge.Link:
		return true
	case f.From.Unnamed && kind != etcmerge.Regular:
		return false
	}
	return was != nil
}

// follows reports whether a link is an image's still, and leads elsewhere now.
func (f *fill) follows(name string, was, have, fresh *etcmerge.Entry) bool {
	return was != nil && was.Type == etcmerge.Link && have.Type == etcmerge.Link && fresh.Type == etcmerge.Link &&
		have.Target != fresh.Target && f.unchanged(f.entryPath, name, was, have)
}

// entryOf is what a tree has at a path; nil where it has nothing.
func (f *fill) entryOf(t *tree, name string) (*etcmerge.Entry, error) {
	e, err := t.Entry(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &e, err
}

// was is what the image before had there; nil where it had nothing or is not known.
func (f *fill) was(name string) (*etcmerge.Entry, error) {
	if f.base == nil {
		return nil, nil
	}
	e, err := f.entryOf(f.base, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
	}
	return e, nil
}

// appear puts the image's entry into its place.
func (f *fill) appear(name string, e etcmerge.Entry) error {
	f.owners().Translate(&e)
	leftOut := f.leftOut(f.entryPath)
	err := put(f.all, f.own, name, e, f.image, f.Step, leftOut)
	if unfit(err) {
		leftOut(name, "left out: "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// put makes an entry of a tree, which is complete when it has its name. It is made in a
// directory of its file system where nobody else can write.
func put(all *os.File, own *tree, name string, e etcmerge.Entry, from *tree, step func(string) error, leftOut func(path, why string)) error {
	fd, err := beneath(own.fd, path.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	parent := os.NewFile(uintptr(fd), path.Dir(name))
	defer parent.Close()
	err = putBy(all, temporary, parent, name, e, from, step, leftOut)
	if errors.Is(err, unix.EXDEV) {
		err = putBy(parent, beside, parent, name, e, from, step, leftOut)
	}
	return err
}

// putBy makes an entry under a name in a directory, and moves it.
func putBy(where *os.File, as string, parent *os.File, name string, e etcmerge.Entry, from *tree, step func(string) error, leftOut func(path, why string)) error {
	if err := remove(where, as, step); err != nil {
		return err
	}
	var content io.Reader
	if e.Type == etcmerge.Regular {
		file, err := from.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		content = file
	}
	fd := int(where.Fd())
	w := newWriter(fd, step, leftOut)
	w.path = name
	err := w.node(fd, as, e, content)
	if err == nil {
		err = w.attributes(fd, as, e)
	}
	if err == nil && e.Type == etcmerge.Regular {
		// The rename may reach the disk before the content does.
		if err = step("flush " + as); err == nil {
			err = flush(fd, as)
		}
	}
	if err == nil {
		err = step("rename " + name)
	}
	if err == nil {
		err = unix.Renameat(fd, as, int(parent.Fd()), path.Base(name))
	}
	if err != nil {
		return errors.Join(err, remove(where, as, step))
	}
	return nil
}

func flush(parent int, name string) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

// forget removes a file at the top.
func (f *fill) forget(name string) error {
	have, err := f.entryOf(f.own, name)
	if err != nil || have == nil || have.Type == etcmerge.Directory {
		return err
	}
	if err := f.Step("remove " + name); err != nil {
		return err
	}
	fd, err := beneath(f.own.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Unlinkat(fd, name, 0)
	if unfit(err) {
		f.leftOut(f.entryPath)(name, "it should be removed, and stays: "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
