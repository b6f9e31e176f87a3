package upper

import (
	"context"
	"io"
	"io/fs"
	"path"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// plan merges. The rules for account files are those of /etc, and whose number is whose
// is decided there: /etc comes first. Each directory has a list of conflicts of its own,
// which belongs to its version as the files do.
//
// Where nothing was kept for a directory, all that it gets is what the image's numbers that
// mean others here need, and a list (see writeList).
func (m *maker) plan(ctx context.Context, e stateconf.Entry, base, image, before *tree) (*etcmerge.Result, error) {
	o := m.Options
	o.Masked = m.From.Unnamed
	o.Other, o.Etc = e.Path != etc, m.etc
	var old, ours etcmerge.Tree
	switch {
	case before == nil && !o.Other && len(m.People) > 0:
		return etcmerge.PlanPeople(ctx, image, m.People, o)
	case before != nil:
		ours = before
	case o.Other && len(m.users)+len(m.groups) > 0:
		ours = empty{image}
	default:
		return etcmerge.Plan(ctx, nil, image, empty{image}, o)
	}
	if base != nil {
		old = base
	}
	return etcmerge.Plan(ctx, old, image, ours, o)
}

// empty is an upper directory that looks like the image's and holds nothing.
type empty struct{ image *tree }

// Entry implements etcmerge.Tree.
func (t empty) Entry(name string) (etcmerge.Entry, error) {
	if name == "." {
		return t.image.Entry(name)
	}
	return etcmerge.Entry{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Names implements etcmerge.Tree.
func (t empty) Names(string) ([]string, error) { return nil, nil }

// Open implements etcmerge.Tree.
func (t empty) Open(name string) (io.ReadCloser, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// reportPlan adds what came of a directory, by whole paths.
func (m *maker) reportPlan(e stateconf.Entry, plan *etcmerge.Result) {
	for _, c := range plan.Changes {
		switch c.Action {
		case etcmerge.Keep:
			m.report.Kept++
		case etcmerge.Merge:
			m.report.Merged++
		}
	}
	whole := func(name etcmerge.Name) etcmerge.Name { return etcmerge.Name(path.Join(e.Path, string(name))) }
	for _, c := range plan.Conflicts {
		c.Path = whole(c.Path)
		m.report.Conflicts = append(m.report.Conflicts, c)
	}
	for _, n := range plan.Notes {
		m.report.Notes = append(m.report.Notes, etcmerge.Note{Path: whole(n.Path), Text: n.Text})
	}
	if e.Path == etc {
		m.etc, m.users, m.groups = plan, plan.Users, plan.Groups
	}
	if m.first == nil {
		m.first, m.firstPath = plan, e.Path
	}
}

// overlays are the entries that have upper directories, /etc first.
func overlays(entries []stateconf.Entry) (out []stateconf.Entry) {
	for _, first := range []bool{true, false} {
		for _, e := range entries {
			if e.Mode == stateconf.Overlay && first == (e.Path == etc) {
				out = append(out, e)
			}
		}
	}
	return out
}
