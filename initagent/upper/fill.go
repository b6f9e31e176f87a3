package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

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

// temporary is the name of what is not complete yet, in its directory.
const temporary = ".halogen" + unfinished

// bind gives a shared directory what a new image has and this machine lacks. One that
// is not there is seeded from the image as a whole when it is mounted.
func (m *maker) bind(e stateconf.Entry) error {
	base, image, _, err := m.trees(e.Path, false)
	if err != nil {
		return err
	}
	defer closeTrees(base, image)
	name := path.Join(Bind, Name(e.Path))
	own, err := openTree(m.root, name, name, false)
	if errors.Is(err, fs.ErrNotExist) || image == nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.Close()
	f := &fill{maker: m, base: base, image: image, own: own}
	if err := f.directory(".", 0); err != nil {
		return err
	}
	if e.Path != variable {
		return nil
	}
	return f.forget(updated)
}

// fill is one shared directory.
type fill struct {
	*maker
	base, image, own *tree // base is nil where it is not known
	looked           int
}

// directory goes through a directory that both the image and this machine have.
//
// What is new is made under a name of its own, with owner, mode and attributes, and
// renamed: cut before that, it is missing still; cut after it, it is this machine's,
// which is not touched again. A directory is empty when it gets its name, and is filled
// by the next attempt.
func (f *fill) directory(directory string, depth int) error {
	if depth > etcmerge.MaxDepth {
		return fmt.Errorf("%s: more than %d directories within one another", directory, etcmerge.MaxDepth)
	}
	names, err := f.image.Names(directory)
	if err != nil {
		return err
	}
	for _, name := range names {
		if f.looked++; f.looked > etcmerge.MaxEntries {
			return fmt.Errorf("the image has more than %d entries", etcmerge.MaxEntries)
		}
		if err := f.entry(path.Join(directory, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (f *fill) entry(name string, depth int) error {
	fresh, err := f.image.Entry(name)
	if err != nil {
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
	case have == nil && was != nil:
		return nil // somebody has deleted it here
	case have == nil && (fresh.Type == etcmerge.Directory || fresh.Type == etcmerge.Regular || fresh.Type == etcmerge.Link):
		if err := f.appear(name, fresh); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	case have == nil:
		return nil
	case follows(was, have, fresh):
		if err := f.appear(name, fresh); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	case have.Type != etcmerge.Directory:
		return nil
	}
	if fresh.Type != etcmerge.Directory {
		return nil
	}
	return f.directory(name, depth+1)
}

// follows reports whether a link is the image's still, and now leads elsewhere.
func follows(was, have *etcmerge.Entry, fresh etcmerge.Entry) bool {
	return was != nil && was.Type == etcmerge.Link && have.Type == etcmerge.Link && fresh.Type == etcmerge.Link &&
		have.Target == was.Target && fresh.Target != was.Target
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
	parent, err := beneath(f.own.fd, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := f.clear(parent); err != nil {
		return err
	}
	etcmerge.Owners{Users: f.users, Groups: f.groups}.Translate(&e)
	var content io.Reader
	if e.Type == etcmerge.Regular {
		file, err := f.image.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		content = file
	}
	w := newWriter(parent, f.Step)
	if err := w.node(parent, temporary, e, content); err != nil {
		return err
	}
	if err := w.attributes(parent, temporary, e); err != nil {
		return err
	}
	if e.Type == etcmerge.Regular {
		// The rename may reach the disk before the content does.
		if err := f.flush(parent); err != nil {
			return err
		}
	}
	if err := f.Step("rename " + name); err != nil {
		return err
	}
	return unix.Renameat(parent, temporary, parent, path.Base(name))
}

func (f *fill) flush(parent int) error {
	if err := f.Step("flush " + temporary); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, temporary, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

// clear removes what an attempt that was cut has left in a directory.
func (f *fill) clear(parent int) error {
	if err := f.Step("clear " + temporary); err != nil {
		return err
	}
	err := unix.Unlinkat(parent, temporary, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(parent, temporary, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
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
	if err := unix.Unlinkat(fd, name, 0); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
