package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// A Result is what was done.
type Result struct {
	Given   []string `json:"given_back"` // the image's are there again
	Removed []string `json:"removed"`    // the image does not have them, and they were named
	Left    []string `json:"left"`       // the image does not have them, and they were not named
	Decided []string `json:"decided"`    // conflicts that are listed no more
}

// Add adds what was done besides.
func (r *Result) Add(more *Result) {
	r.Given = append(r.Given, more.Given...)
	r.Removed = append(r.Removed, more.Removed...)
	r.Left = append(r.Left, more.Left...)
	r.Decided = append(r.Decided, more.Decided...)
}

// Reset gives the image's entry back: content, owner, mode, extended attributes and time.
// What the image does not have is removed where it is named, and only then: of a directory
// that the image has, what was added on this machine stays, and the result names it. A file
// of users and groups is refused.
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
	found, skipped, err := m.compare(ctx, p, rel)
	if err != nil {
		return nil, err
	}
	if len(skipped) > 0 {
		return nil, fmt.Errorf("%s, and nothing was given back: name what else lies in %s", skipped[0], Shown(name))
	}
	if err := p.mayReset(rel, found); err != nil {
		return nil, err
	}
	r := new(Result)
	given := func(path string) bool { return path == rel || strings.HasPrefix(path, rel+"/") }
	if len(found) == 0 {
		list, err := p.list()
		if err != nil || !slices.ContainsFunc(list.Conflicts, func(c etcmerge.Conflict) bool { return given(string(c.Path)) }) {
			return r, err // nothing is to be written
		}
	}
	return r, m.writing(ctx, p, func(w *work) error {
		for _, c := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.reset(c, name, r); err != nil {
				return fmt.Errorf("give %s back: %w", Shown(c.Path), err)
			}
		}
		return w.forget(given)
	})
}

// mayReset is all that can be known before something is written.
func (p Pair) mayReset(rel string, found []Change) error {
	merged, image, err := p.lookup(rel)
	if err != nil {
		return err
	}
	defer merged.close()
	defer image.close()
	if len(found) > 0 {
		if err := p.mayGive(rel, merged); err != nil {
			return err
		}
	}
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
func (w *work) reset(c Change, named string, r *Result) error {
	p := w.pair
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
		if err := w.remove(parent, base, merged); err != nil {
			return err
		}
		r.Removed = append(r.Removed, c.Path)
		return nil
	}
	if image.isDirectory() {
		err = w.giveDirectory(parent, base, merged, image)
	} else {
		err = w.give(parent, base, merged, image)
	}
	if err == nil {
		r.Given = append(r.Given, c.Path)
	}
	return err
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

// giveDirectory makes the directory, or gives one that is there the image's attributes. Cut
// before those are complete, it has some of them; the same command gives it the others.
func (w *work) giveDirectory(n *node, name string, merged, image *node) error {
	if merged.isDirectory() {
		return errors.Join(w.take(merged, image), w.sync(merged))
	}
	if err := w.discard(); err != nil {
		return err
	}
	if err := w.before("make a directory"); err != nil {
		return err
	}
	if err := unix.Mkdirat(w.place.fd, unfinished, 0o700); err != nil {
		return err
	}
	if err := w.complete(image); err != nil {
		return errors.Join(err, w.discard())
	}
	return w.replace(n, name, merged)
}

// give replaces an entry by a copy of the image's. It is complete and on the disk before
// it gets its name: cut before the rename the old one is there, cut after it the new one.
func (w *work) give(n *node, name string, merged, image *node) error {
	if err := w.discard(); err != nil {
		return err
	}
	err := w.copy(image)
	if err == nil {
		err = w.complete(image)
	}
	if err != nil {
		return errors.Join(err, w.discard())
	}
	return w.replace(n, name, merged)
}

// replace gives what is complete its name. Between a directory and anything else, the old
// one goes first; cut after that, the entry is missing, and the same command goes on.
func (w *work) replace(n *node, name string, merged *node) error {
	fresh, err := w.fresh()
	if err != nil {
		return err
	}
	defer fresh.close()
	if merged != nil && merged.isDirectory() != fresh.isDirectory() {
		if err := w.remove(n, name, merged); err != nil {
			return err
		}
	}
	return w.rename(n, name)
}

// copy makes a copy of an entry that is not a directory.
func (w *work) copy(image *node) error {
	if err := w.before("make a copy"); err != nil {
		return err
	}
	switch {
	case image.isFile():
		return w.copyContent(image)
	case image.isLink():
		to, err := image.link()
		if err != nil {
			return err
		}
		return unix.Symlinkat(to, w.place.fd, unfinished)
	}
	return unix.Mknodat(w.place.fd, unfinished, image.format()|0o600, int(image.stat.Rdev))
}

func (w *work) copyContent(image *node) error {
	in, err := image.file()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := w.create()
	if err != nil {
		return err
	}
	if err := w.before("write"); err != nil {
		return errors.Join(err, out.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// complete gives what was just made the image's attributes, and has it on the disk.
func (w *work) complete(image *node) error {
	fresh, err := w.fresh()
	if err != nil {
		return err
	}
	defer fresh.close()
	if err := w.take(fresh, image); err != nil || !fresh.isFile() && !fresh.isDirectory() {
		return err
	}
	return w.sync(fresh)
}

// take gives an entry the image's attributes, by its descriptor, with this machine's numbers
// of the same users and groups: the owner first, since changing it takes setuid and
// capabilities away, and the time last.
func (w *work) take(n, image *node) error {
	want, err := w.owners.toGive(image)
	if err != nil {
		return err
	}
	if err := w.before("set the owner"); err != nil {
		return err
	}
	if err := unix.Fchownat(n.fd, "", int(want.UID), int(want.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if err := w.before("set the mode"); err != nil {
		return err
	}
	if !n.isLink() {
		if err := unix.Chmod(n.path(), want.Mode); err != nil {
			return fmt.Errorf("set the mode: %w", err)
		}
	}
	if err := w.takeXattrs(n, want.Xattrs); err != nil {
		return err
	}
	if err := w.before("set the time"); err != nil {
		return err
	}
	times := []unix.Timespec{image.stat.Atim, image.stat.Mtim}
	if err := unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

func (m *Machine) takeXattrs(n *node, want map[string]string) error {
	have, err := n.xattrs()
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
