package upper

import (
	"context"
	"io"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// plan merges. The rules for account files, and the list of conflicts, are those of
// /etc: for any other directory a file's name means nothing.
func (m *maker) plan(ctx context.Context, e stateconf.Entry, base, image, before *tree) (*etcmerge.Result, error) {
	shown := func(t *tree) etcmerge.Tree {
		switch {
		case t == nil:
			return nil
		case e.Path == etc:
			return t
		}
		return within{t}
	}
	plan, err := etcmerge.Plan(ctx, shown(base), shown(image), shown(before), m.Options)
	if err != nil || e.Path == etc {
		return plan, err
	}
	plan.Changes = inner(plan.Changes)
	return plan, nil
}

// inside is where a directory is shown that is not /etc.
const inside = "directory"

// within shows a tree as the only directory of another one.
type within struct{ *tree }

// at is a path of the tree; false where it is outside.
func at(name string) (string, bool) {
	if name == inside {
		return ".", true
	}
	return strings.CutPrefix(name, inside+"/")
}

// Entry implements etcmerge.Tree.
func (w within) Entry(name string) (etcmerge.Entry, error) {
	if name == "." {
		return etcmerge.Entry{Type: etcmerge.Directory, Mode: 0o755}, nil
	}
	if own, ok := at(name); ok {
		return w.tree.Entry(own)
	}
	return etcmerge.Entry{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Names implements etcmerge.Tree.
func (w within) Names(name string) ([]string, error) {
	if name == "." {
		return []string{inside}, nil
	}
	own, _ := at(name)
	return w.tree.Names(own)
}

// Open implements etcmerge.Tree.
func (w within) Open(name string) (io.ReadCloser, error) {
	own, _ := at(name)
	return w.tree.Open(own)
}

// inner are the changes of the directory within, by their paths there.
func inner(changes []etcmerge.Change) []etcmerge.Change {
	var out []etcmerge.Change
	for _, c := range changes {
		if own, ok := at(c.Path); ok {
			c.Path = path.Clean(own)
			out = append(out, c)
		}
	}
	return out
}
