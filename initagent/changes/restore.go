package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A Result is what was done.
type Result struct {
	Given   []string `json:"given_back"` // the image's are there again
	Removed []string `json:"removed"`    // the image does not have them, and they were named
	Left    []string `json:"left"`       // the image does not have them, and they were not named
	Decided []string `json:"decided"`    // conflicts that are listed no more
}

// unfinished is the name of what is not complete yet, beside the file that it replaces. A
// cut leaves one, which the next that is made in this directory replaces.
const unfinished = ".halogenctl-changes.new"

// Add adds what was done besides.
func (r *Result) Add(more *Result) {
	r.Given = append(r.Given, more.Given...)
	r.Removed = append(r.Removed, more.Removed...)
	r.Left = append(r.Left, more.Left...)
	r.Decided = append(r.Decided, more.Decided...)
}

// Reset gives the image's entry back: content, owner, mode, extended attributes and time.
// What the image does not have is removed where it is named, and only then: of a directory
// that the image has, what was added on this machine stays, and the result names it.
//
// Each entry is replaced by one rename. Cut at any point, each is this machine's or the
// image's, whole, and the same command goes on. The list of conflicts is written last: cut
// before that, it still names what was given back already, and the same command ends it.
func (m *Machine) Reset(ctx context.Context, name string) (*Result, error) {
	p, rel, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if rel == "" {
		return nil, fmt.Errorf("%s as a whole holds this machine's users, passwords and identity: name what lies in it", p.Path)
	}
	found, err := m.compare(ctx, p, rel, maxEntries)
	if err != nil {
		return nil, err
	}
	if err := p.mayReset(rel, found); err != nil {
		return nil, err
	}
	r := new(Result)
	for _, c := range found {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if err := m.reset(p, c, name, r); err != nil {
			return r, fmt.Errorf("give %s back: %w", Shown(c.Path), err)
		}
	}
	return r, m.forget(p, func(path string) bool { return path == rel || strings.HasPrefix(path, rel+"/") })
}

// mayReset is all that can be known before something is written.
func (p Pair) mayReset(rel string, found []Change) error {
	merged, image, err := p.lookup(rel)
	if err != nil {
		return err
	}
	defer merged.close()
	defer image.close()
	if image == nil && merged.isDirectory() {
		return p.mayRemove(rel, merged, "the image does not have this directory")
	}
	parent, err := open(p.Merged, path.Dir(rel))
	if err != nil {
		return err
	}
	defer parent.close()
	if !parent.isDirectory() {
		return fmt.Errorf("the directory %s is not there: give that back first", Shown(p.join(path.Dir(rel))))
	}
	for _, c := range found {
		if c.Kind != Changed || c.Type != "directory" {
			continue
		}
		if err := p.mayReplace(p.within(c.Path)); err != nil {
			return err
		}
	}
	return nil
}

// mayReplace refuses a directory with something in it where the image has none.
func (p Pair) mayReplace(rel string) error {
	merged, image, err := p.lookup(rel)
	if err != nil {
		return err
	}
	defer merged.close()
	defer image.close()
	if image == nil || image.isDirectory() || !merged.isDirectory() {
		return nil
	}
	return p.mayRemove(rel, merged, "the image has a "+image.kind()+" in the place of this directory")
}

func (p Pair) mayRemove(rel string, directory *node, why string) error {
	names, err := directory.names(maxEntries)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s, and it has %d entries: move them away, or remove them, first", why, len(names))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", Shown(p.join(rel)), err)
	}
	return nil
}

// reset gives one entry back. Those of a directory come after it.
func (m *Machine) reset(p Pair, c Change, named string, r *Result) error {
	if c.Kind == Added && c.Path != named {
		r.Left = append(r.Left, c.Path)
		return nil
	}
	rel := p.within(c.Path)
	merged, image, err := p.lookup(rel)
	if err != nil {
		return err
	}
	defer merged.close()
	defer image.close()
	parent, err := open(p.Merged, path.Dir(rel))
	if err == nil && !parent.isDirectory() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return err
	}
	defer parent.close()
	base := path.Base(rel)
	if image == nil {
		r.Removed = append(r.Removed, c.Path)
		return m.remove(parent, base, merged)
	}
	r.Given = append(r.Given, c.Path)
	if image.isDirectory() {
		return m.giveDirectory(parent, base, merged, image)
	}
	return m.give(parent, base, merged, image)
}

// remove removes an entry of a directory, and has that on the disk.
func (m *Machine) remove(n *node, name string, entry *node) error {
	flags := 0
	if entry.isDirectory() {
		flags = unix.AT_REMOVEDIR
	}
	if err := m.before("remove"); err != nil {
		return err
	}
	if err := unix.Unlinkat(n.fd, name, flags); err != nil {
		return err
	}
	return m.sync(n)
}

// sync has a file or a directory on the disk.
func (m *Machine) sync(n *node) error {
	f, err := n.file()
	if err != nil {
		return err
	}
	return errors.Join(m.before("sync"), f.Sync(), f.Close())
}

// rename gives the complete copy its name, and has that on the disk.
func (m *Machine) rename(n *node, name string) error {
	if err := m.before("rename"); err != nil {
		return err
	}
	if err := unix.Renameat(n.fd, unfinished, n.fd, name); err != nil {
		return err
	}
	return m.sync(n)
}

// discard removes what was left unfinished in a directory.
func (m *Machine) discard(n *node) error {
	err := m.before("discard")
	if err == nil {
		err = unix.Unlinkat(n.fd, unfinished, 0)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove what was left unfinished, %s: %w", unfinished, err)
	}
	return nil
}

// giveDirectory makes the directory, or gives it the image's attributes. Cut before those
// are complete, it is one that only root can enter, or has some of them; the same command
// gives it the others.
func (m *Machine) giveDirectory(n *node, name string, merged, image *node) error {
	if merged != nil && !merged.isDirectory() {
		if err := m.remove(n, name, merged); err != nil {
			return err
		}
		merged = nil
	}
	if merged == nil {
		if err := m.before("make a directory"); err != nil {
			return err
		}
		if err := unix.Mkdirat(n.fd, name, 0o700); err != nil {
			return err
		}
	}
	fresh, err := n.child(name)
	if err == nil && !fresh.isDirectory() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := m.take(fresh, image); err != nil {
		return err
	}
	return errors.Join(m.sync(fresh), m.sync(n))
}

// give replaces an entry by a copy of the image's. It is complete and on the disk before
// it gets its name: cut before the rename the old one is there, cut after it the new one.
// An empty directory in its place goes first; cut after that, the entry is missing, and the
// same command goes on.
func (m *Machine) give(n *node, name string, merged, image *node) error {
	if err := m.discard(n); err != nil {
		return err
	}
	if err := m.copy(n, image); err != nil {
		return errors.Join(err, m.discard(n))
	}
	if merged.isDirectory() {
		if err := m.remove(n, name, merged); err != nil {
			return err
		}
	}
	return m.rename(n, name)
}

// copy makes the unfinished copy of an entry that is not a directory.
func (m *Machine) copy(n, image *node) error {
	err := m.before("make a copy")
	switch {
	case err != nil:
	case image.isFile():
		err = m.copyContent(n, image)
	case image.isLink():
		var to string
		if to, err = image.link(); err == nil {
			err = unix.Symlinkat(to, n.fd, unfinished)
		}
	default:
		err = unix.Mknodat(n.fd, unfinished, image.format()|0o600, int(image.stat.Rdev))
	}
	if err != nil {
		return err
	}
	fresh, err := n.child(unfinished)
	if err == nil && fresh == nil {
		err = unix.ENOENT
	}
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := m.take(fresh, image); err != nil || !fresh.isFile() {
		return err
	}
	return m.sync(fresh)
}

func (m *Machine) copyContent(n, image *node) error {
	in, err := image.file()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := n.create()
	if err != nil {
		return err
	}
	if err := m.before("write"); err != nil {
		return errors.Join(err, out.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// create makes the unfinished file of a directory.
func (n *node) create() (*os.File, error) {
	fd, err := unix.Openat(n.fd, unfinished, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), unfinished), nil
}

// take gives an entry the image's attributes: the owner first, since changing it takes
// setuid and capabilities away, and the time last.
func (m *Machine) take(n, image *node) error {
	if err := m.before("set the owner"); err != nil {
		return err
	}
	if err := unix.Fchownat(n.fd, "", int(image.stat.Uid), int(image.stat.Gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if err := m.before("set the mode"); err != nil {
		return err
	}
	if !n.isLink() {
		if err := unix.Chmod(n.path(), image.stat.Mode&0o7777); err != nil {
			return fmt.Errorf("set the mode: %w", err)
		}
	}
	if err := m.takeXattrs(n, image); err != nil {
		return err
	}
	if err := m.before("set the time"); err != nil {
		return err
	}
	times := []unix.Timespec{image.stat.Atim, image.stat.Mtim}
	if err := unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

func (m *Machine) takeXattrs(n, image *node) error {
	have, err := n.xattrs()
	if err != nil {
		return err
	}
	want, err := image.xattrs()
	if err != nil {
		return err
	}
	for _, name := range unequal(have, want) {
		if err := m.before("set an attribute"); err != nil {
			return err
		}
		value, wanted := want[name]
		if wanted {
			err = unix.Setxattr(n.path(), name, []byte(value), 0)
		} else {
			err = unix.Removexattr(n.path(), name)
		}
		if err != nil {
			return fmt.Errorf("set extended attribute %s: %w", Shown(name), err)
		}
	}
	return nil
}
