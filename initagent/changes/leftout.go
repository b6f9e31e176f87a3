package changes

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
)

// A LeftOut is what the first start of a system could not carry over, or found not to be as
// it should: in any directory, by its whole path. It is listed until somebody keeps it so.
type LeftOut struct {
	Path   string           `json:"path"`
	Reason string           `json:"reason"`
	Since  contract.Version `json:"since"` // the release whose first start it was
}

// String is it on one line.
func (l LeftOut) String() string {
	return fmt.Sprintf("%s: %s (since version %s)", Shown(l.Path), visible(l.Reason), l.Since)
}

// LeftOut is what nobody has seen yet, of the lists of all directories.
func (m *Machine) LeftOut() ([]LeftOut, error) {
	all := []LeftOut{}
	for _, p := range m.Pairs {
		list, err := p.list()
		if err != nil {
			return nil, err
		}
		for _, l := range list.Unseen() {
			all = append(all, LeftOut{string(l.Path), l.Reason, l.Since})
		}
	}
	return all, nil
}

// see notes that what was left out at a path has been seen. It reports whether anything was.
func (m *Machine) see(ctx context.Context, name string) (found bool, err error) {
	for _, p := range m.Pairs {
		list, err := p.list()
		if err != nil {
			return found, err
		}
		if !slices.ContainsFunc(list.Unseen(), func(l etcmerge.LeftOut) bool { return string(l.Path) == name }) {
			continue
		}
		found = true
		err = m.writing(ctx, p, func(w *work) error {
			return w.change(func(list *etcmerge.List) { list.KeepLeftOut(name) })
		})
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

// Waiting is what waits for a decision, by whole paths, each once.
type Waiting struct{ Conflicts, LeftOut []string }

// Waiting looks for it.
func (m *Machine) Waiting(ctx context.Context) (w Waiting, err error) {
	conflicts, err := m.Undecided(ctx)
	if err != nil {
		return w, err
	}
	left, err := m.LeftOut()
	if err != nil {
		return w, err
	}
	w.Conflicts = Files(conflicts)
	for _, l := range left {
		w.LeftOut = append(w.LeftOut, l.Path)
	}
	slices.Sort(w.LeftOut)
	w.LeftOut = slices.Compact(w.LeftOut)
	return w, nil
}

// Summary is a line for who logs in, or two; "" where nothing waits.
func (w Waiting) Summary() string {
	var lines []string
	switch files := len(w.Conflicts); files {
	case 0:
	case 1:
		lines = append(lines, "1 file was changed both here and by an update, and waits for a decision: `halogenctl changes` shows it")
	default:
		lines = append(lines, fmt.Sprintf("%d files were changed both here and by an update, and wait for a decision: `halogenctl changes` lists them", files))
	}
	switch n := len(w.LeftOut); n {
	case 0:
	case 1:
		lines = append(lines, "1 file was left out by an update, or is not as it should be: `halogenctl changes` shows it")
	default:
		lines = append(lines, fmt.Sprintf("%d files were left out by an update, or are not as they should be: `halogenctl changes` lists them", n))
	}
	return strings.Join(lines, "\n")
}
