package upper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/strictjson"
)

// linked ends the name, after the root hash, of the list of links in shared directories
// that a system has set: for as long as nobody changed them they are the image's still, and
// the system that a trial falls back to gets them back.
const linked = ".links"

// maxLinks bounds that list in bytes.
const maxLinks = 1 << 20

// A link is one that a system's first start has changed.
type link struct {
	Entry etcmerge.Name `json:"entry"` // as in state.conf
	Path  etcmerge.Name `json:"path"`  // below it
	From  etcmerge.Name `json:"from"`
	To    etcmerge.Name `json:"to"`
}

// Linked are the systems among the names in [Directory] that have set links.
func Linked(names []string) []string {
	var out []string
	for _, n := range names {
		if system, ok := strings.CutSuffix(n, linked); ok && rootHash.MatchString(system) {
			out = append(out, system)
		}
	}
	return out
}

// readLinks reads a system's list. One that cannot be understood is none: the links stay
// as they are.
func (s Store) readLinks(system string) (links []link) {
	f, err := s.open(path.Join(Directory, system+linked))
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxLinks {
		return nil
	}
	text := make([]byte, maxLinks)
	n, _ := f.Read(text)
	if strictjson.Decode(text[:n], &links) != nil {
		return nil
	}
	return links
}

// open opens a regular file of the root partition.
func (s Store) open(name string) (*os.File, error) {
	parent, err := s.directory(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	t := tree{name: name, fd: int(parent.Fd()), buf: make([]byte, maxXattrs)}
	f, err := t.Open(path.Base(name))
	if err != nil {
		return nil, err
	}
	return f.(*os.File), nil
}

// recallLinks recalls what systems have set. What this one has set itself, before it was
// cut, stays on its list.
func (s Store) recallLinks(m *maker) error {
	names, err := s.Names(Directory)
	if err != nil {
		return err
	}
	for _, system := range Linked(names) {
		links := s.readLinks(system)
		m.set = append(m.set, links...)
		if system == m.System {
			m.links = links
		}
	}
	return nil
}

// unchanged reports whether a link is an image's still: the one before's, or one that a
// system has set which came after it.
func (m *maker) unchanged(entry, name string, was, have *etcmerge.Entry) bool {
	if have.Target == was.Target {
		return true
	}
	for _, l := range m.set {
		if string(l.Entry) == entry && string(l.Path) == name && string(l.From) == was.Target && string(l.To) == have.Target {
			return true
		}
	}
	return false
}

// setLinks has the links follow the image. The list comes first, and is on the disk.
// Cut before it, no link was changed; cut after it, those that were are on it, and the
// second attempt finds them there.
func (m *maker) setLinks() error {
	if len(m.links) == 0 {
		return nil
	}
	text, err := json.Marshal(m.links)
	if err != nil {
		return err
	}
	name := m.System + linked
	w := newWriter(int(m.all.Fd()), m.Step, nil)
	e := etcmerge.Entry{Type: etcmerge.Regular}
	if err := w.node(w.fd, name+unfinished, e, strings.NewReader(string(text))); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	if err := flush(w.fd, name+unfinished); err != nil {
		return err
	}
	if err := m.Step("rename " + name); err != nil {
		return err
	}
	err = unix.Renameat(w.fd, name+unfinished, w.fd, name)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) { // it is not a list, or is protected
		if err = remove(m.all, name, m.Step); err == nil {
			err = unix.Renameat(w.fd, name+unfinished, w.fd, name)
		}
	}
	if err := errors.Join(err, m.all.Sync()); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	for _, l := range m.links {
		err := replaceLink(m.root, m.all, l, string(l.From), string(l.To), m.Step)
		if unfit(err) {
			m.leftOut(string(l.Entry))(string(l.Path), fmt.Sprintf("it should lead to %q, and stays: %v", l.To, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("%s/%s: %w", l.Entry, l.Path, err)
		}
	}
	return nil
}

// GiveBack puts the links back that a system's first start has set, where nobody has
// changed them since and the image has them as they were before; image is where that is
// mounted. Cut within, the list is there still, and all of it is done again.
func (s Store) GiveBack(system, image string) error {
	name := path.Join(Directory, system+linked)
	all, err := s.directory(Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer all.Close()
	thawIn(all, ".", func(string) error { return nil })
	root, err := s.directory(".")
	if err != nil {
		return err
	}
	defer root.Close()
	for _, l := range s.readLinks(system) {
		if !has(image, l) {
			continue
		}
		err := replaceLink(int(root.Fd()), all, l, string(l.To), string(l.From), func(string) error { return nil })
		// Its directory is immutable by now: somebody has decided about what is in it.
		if err != nil && !unfit(err) {
			return fmt.Errorf("give back %s/%s: %w", l.Entry, l.Path, err)
		}
	}
	if err := remove(all, system+linked, func(string) error { return nil }); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return all.Sync()
}

// has reports whether an image has a link as it was before.
func has(image string, l link) bool {
	t, err := openIn(image, "the image", strings.TrimPrefix(string(l.Entry), "/"))
	if err != nil || t == nil {
		return false
	}
	defer t.Close()
	e, err := t.Entry(string(l.Path))
	return err == nil && e.Type == etcmerge.Link && e.Target == string(l.From)
}

// replaceLink has a link of a shared directory lead elsewhere, if it is what it should be.
func replaceLink(root int, all *os.File, l link, from, to string, step func(string) error) error {
	name := path.Join(Bind, Name(string(l.Entry)))
	own, err := openTree(root, name, name, false)
	if err != nil {
		return ignoreMissing(err)
	}
	defer own.Close()
	e, err := own.Entry(string(l.Path))
	if err != nil || e.Type != etcmerge.Link || e.Target != from {
		return ignoreMissing(err)
	}
	e.Target = to
	return put(all, own, placing{string(l.Path), e, nil, step, func(string, string) {}})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
