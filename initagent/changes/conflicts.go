package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
)

// A Conflict is a file, or an entry of an account file, that an update and this machine's
// owner both changed. The owner's is in effect.
type Conflict struct {
	Path string `json:"path"`
	// Entry is the user, the group or the shell, where it is one of an account file.
	Entry  string           `json:"entry,omitempty"`
	Reason string           `json:"reason"`
	Since  contract.Version `json:"since"` // the release that first brought it
}

// A Note says what an update did by itself.
type Note struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

// String is the note on one line.
func (n Note) String() string { return Shown(n.Path) + ": " + visible(n.Text) }

// String is the conflict on one line.
func (c Conflict) String() string {
	text := Shown(c.Path)
	if c.Entry != "" {
		text += ", entry " + Shown(c.Entry)
	}
	text += ": " + visible(c.Reason)
	if c.Since != 0 {
		text += fmt.Sprintf(" (since version %s)", c.Since)
	}
	return text
}

// Files are the files of conflicts, each once.
func Files(all []Conflict) []string {
	var names []string
	for _, c := range all {
		names = append(names, c.Path)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Undecided are the conflicts that nobody has decided, by word or by changing the file.
func (m *Machine) Undecided(ctx context.Context) ([]Conflict, error) {
	var all []Conflict
	for _, p := range m.Pairs {
		list, err := p.list()
		if err != nil {
			return nil, err
		}
		open, err := p.undecided(ctx, list)
		if err != nil {
			return nil, err
		}
		for _, c := range open {
			all = append(all, Conflict{Path: p.join(string(c.Path)), Entry: string(c.Entry), Reason: c.Reason, Since: c.Since})
		}
	}
	return all, nil
}

// notes are what the last update did by itself; more counts what had no room in the list.
func (m *Machine) notes() (all []Note, more int, err error) {
	all = []Note{}
	for _, p := range m.Pairs {
		list, err := p.list()
		if err != nil {
			return nil, 0, err
		}
		more += list.More
		for _, n := range list.Notes {
			all = append(all, Note{p.join(string(n.Path)), n.Text})
		}
	}
	return all, more, nil
}

func (p Pair) undecided(ctx context.Context, list etcmerge.List) ([]etcmerge.Conflict, error) {
	if len(list.Conflicts) == 0 {
		return nil, nil
	}
	open, err := etcmerge.Undecided(ctx, list, upper{p})
	if err == nil || ctx.Err() != nil {
		return open, ctx.Err()
	}
	// One that cannot be looked at hides no other, and is one still.
	open = nil
	for _, c := range list.Conflicts {
		one, err := etcmerge.Undecided(ctx, etcmerge.List{Conflicts: []etcmerge.Conflict{c}}, upper{p})
		if err != nil {
			c.Reason += fmt.Sprintf(" (whether somebody has decided it since is not known: %v)", err)
			one = []etcmerge.Conflict{c}
		}
		open = append(open, one...)
	}
	return open, ctx.Err()
}

// errList explains a list that cannot be read, and the way out.
func (p Pair) errList(err error) error {
	return fmt.Errorf("the list of what updates and this machine both changed, %s: %w (without the file nothing is listed; what is in effect stays as it is)", p.join(etcmerge.ListPath), err)
}

// list reads the list of what updates did; none is an empty one.
func (p Pair) list() (etcmerge.List, error) {
	n, err := open(p.Merged, etcmerge.ListPath)
	if err != nil {
		return etcmerge.List{}, p.errList(err)
	}
	if n == nil {
		return etcmerge.List{}, nil
	}
	defer n.close()
	text, err := n.read(etcmerge.MaxList)
	if err != nil {
		return etcmerge.List{}, p.errList(err)
	}
	list, err := etcmerge.ParseList(text)
	if err != nil {
		return etcmerge.List{}, p.errList(err)
	}
	return list, nil
}

// read reads a regular file of at most limit bytes.
func (n *node) read(limit int64) ([]byte, error) {
	if !n.isFile() {
		return nil, fmt.Errorf("it is a %s", n.kind())
	}
	f, err := n.file()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return text, err
}

// change reads the list, has it changed, and replaces it. The new one is complete and on
// the disk before it gets its name: cut before the rename, the old list is there, and names
// a conflict that was decided already; the same command ends it.
func (w *work) change(edit func(*etcmerge.List)) error {
	list, err := w.pair.list()
	if err != nil || len(list.Conflicts)+len(list.LeftOut) == 0 {
		return err
	}
	edit(&list)
	text, err := list.Encode()
	if err == nil {
		err = w.write(text)
	}
	if err != nil {
		return w.pair.errList(err)
	}
	return nil
}

// write replaces the list, and keeps its mode and owner.
func (w *work) write(text []byte) error {
	old, err := open(w.pair.Merged, etcmerge.ListPath)
	if err != nil {
		return err
	}
	defer old.close()
	directory, err := open(w.pair.Merged, path.Dir(etcmerge.ListPath))
	if err == nil && !directory.isDirectory() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return err
	}
	defer directory.close()
	if err := w.discard(); err != nil {
		return err
	}
	if err := w.before("make a file"); err != nil {
		return err
	}
	f, err := w.create()
	if err != nil {
		return err
	}
	if err = w.before("write"); err == nil {
		_, err = f.Write(text)
	}
	if old.isFile() {
		err = errors.Join(err, f.Chown(int(old.stat.Uid), int(old.stat.Gid)), f.Chmod(fs.FileMode(old.stat.Mode&0o777)))
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, w.discard())
	}
	return w.rename(directory, path.Base(etcmerge.ListPath))
}

// Keep notes that this machine's file is to stay, or that what was left out has been seen.
func (m *Machine) Keep(ctx context.Context, name string) (*Result, error) {
	switch seen, err := m.see(ctx, name); {
	case err != nil:
		return nil, err
	case seen:
		all, err := m.Undecided(ctx)
		if err != nil || !slices.ContainsFunc(all, func(c Conflict) bool { return c.Path == name }) {
			return &Result{Decided: []string{name}}, err
		}
	}
	p, rel, err := m.conflicting(ctx, name)
	if err != nil {
		return nil, err
	}
	err = m.writing(ctx, p, func(w *work) error {
		return w.change(func(list *etcmerge.List) { list.Keep(listed(rel)) })
	})
	if err != nil {
		return nil, err
	}
	return &Result{Decided: []string{name}}, nil
}

// accounts are the files of users and groups, below /etc.
var accounts = []string{"passwd", "group", "shadow", "gshadow", "subuid", "subgid"}

// mayGive refuses to replace a file of users and groups as a whole: it has this machine's,
// who could not log in any more, and whose files a later user would get. One that is missing
// here has nobody.
func (p Pair) mayGive(rel string, merged *node) error {
	name := p.join(rel)
	if merged == nil || path.Dir(name) != "/etc" || !slices.Contains(accounts, path.Base(name)) {
		return nil
	}
	return fmt.Errorf("%s has this machine's own users and groups, and is not replaced as a whole: `halogenctl changes %s` shows what differs; edit it (vipw, vigr, usermod, groupmod, chown, chmod), or keep a conflict as it is (--keep)", name, name)
}

// TakeTheirs gives the image's file back in place of one that both changed; of a directory
// that both have, its owner, mode and attributes alone. Of an account file it takes nothing:
// whole, it would take this machine's users away, and an entry's numbers own files.
func (m *Machine) TakeTheirs(ctx context.Context, name string) (*Result, error) {
	p, rel, err := m.conflicting(ctx, name)
	if err != nil {
		return nil, err
	}
	if p.Path == "/etc" && rel == "shells" {
		return nil, fmt.Errorf("%s has this machine's own shells, and is not taken as a whole: edit what differs, keep it (--keep), or give the image's back all the same (--reset)", Shown(name))
	}
	merged, image, err := p.lookup(rel)
	if err != nil {
		return nil, err
	}
	defer merged.close()
	defer image.close()
	if err := p.mayGive(rel, merged); err != nil {
		return nil, err
	}
	if !merged.isDirectory() || !image.isDirectory() {
		return m.Reset(ctx, name)
	}
	r := new(Result)
	return r, m.writing(ctx, p, func(w *work) error {
		if err := errors.Join(w.take(merged, image), w.sync(merged)); err != nil {
			return fmt.Errorf("give %s back: %w", Shown(name), err)
		}
		r.Given = []string{name}
		return w.forget(func(path string) bool { return path == listed(rel) })
	})
}

// listed is a path as the list has it.
func listed(rel string) string { return cmp.Or(rel, ".") }

// conflicting finds a conflict that is undecided.
func (m *Machine) conflicting(ctx context.Context, name string) (Pair, string, error) {
	p, rel, err := m.find(name)
	if err != nil {
		return p, "", err
	}
	all, err := m.Undecided(ctx)
	if err == nil && !slices.ContainsFunc(all, func(c Conflict) bool { return c.Path == name }) {
		err = fmt.Errorf("%s is not among the conflicts that wait for a decision (`halogenctl changes` lists them)", Shown(name))
	}
	return p, rel, err
}

// forget takes what was given back off the list: it is the image's again.
func (w *work) forget(given func(path string) bool) error {
	return w.change(func(list *etcmerge.List) {
		list.Conflicts = slices.DeleteFunc(list.Conflicts, func(c etcmerge.Conflict) bool { return given(string(c.Path)) })
		list.LeftOut = slices.DeleteFunc(list.LeftOut, func(l etcmerge.LeftOut) bool {
			rel := w.pair.within(string(l.Path))
			return rel != "" && given(rel)
		})
	})
}
