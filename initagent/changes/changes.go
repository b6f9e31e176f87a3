// Package changes tells what a machine's owner has changed in the directories that
// state.conf lays over the image's, gives the image's files back, and takes down what the
// owner has decided where an update wanted to change the same file.
//
// The overlay's upper directory cannot be seen in the running system. So the directory as
// the system sees it is compared with the image's own, which lies under the overlay.
//
// It refuses to follow a link, to open what is not a regular file or a directory, and to
// remove what the image does not have unless that was named.
package changes

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// Limits of what is looked at: in one directory, under one of state.conf's, and how deep. An
// /etc has some 2,000 entries. What is beyond is named and not compared.
const (
	maxEntries = 100_000
	maxTotal   = 4 * maxEntries
	maxDepth   = 64
)

// A Pair is a directory of state.conf: as the system sees it, and as the image has it.
// Both are open, and nothing is mounted in them.
type Pair struct {
	Path          string // "/etc"
	Merged, Image *os.File
}

// Close closes both.
func (p Pair) Close() error { return errors.Join(p.Merged.Close(), p.Image.Close()) }

// A Machine is what the commands work on.
type Machine struct {
	Pairs []Pair
	// before is asked before each write: the tests cut the power there.
	before func(write string) error
	wait   time.Duration // for another command that writes
	// maxEntries and maxTotal, unless a test has less patience.
	entries, total int
}

// New is a machine with these directories, which it closes.
func New(pairs ...Pair) *Machine {
	return &Machine{Pairs: pairs, before: func(string) error { return nil }, wait: lockWait, entries: maxEntries, total: maxTotal}
}

// Close closes the directories.
func (m *Machine) Close() error {
	var all error
	for _, p := range m.Pairs {
		all = errors.Join(all, p.Close())
	}
	return all
}

// A Kind says what became of an entry of the image.
type Kind string

// The kinds.
const (
	Added   Kind = "added"   // the image does not have it
	Removed Kind = "removed" // only the image has it
	Changed Kind = "changed"
)

// A Change is one entry that differs from the image's.
type Change struct {
	Path string `json:"path"`
	// PathBytes is the path in Base64 where it is not UTF-8.
	PathBytes string `json:"path_base64,omitempty"`
	Kind      Kind   `json:"kind"`
	Type      string `json:"type"` // of what is here; of the image's where it is removed
	// What differs, in words, for what is changed.
	What []string `json:"what,omitempty"`
	// Time is when the content was changed or, where the content is the image's, the
	// attributes. Nothing keeps the time of a removal.
	Time *time.Time `json:"time,omitempty"`
}

// A Skipped is a directory that holds more than is looked at, or what cannot be read.
type Skipped struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// String is what was skipped, on one line.
func (s Skipped) String() string {
	return fmt.Sprintf("%s: %s, and was not compared", Shown(s.Path), s.Why)
}

// A Report is what there is to know.
type Report struct {
	Changes   []Change   `json:"changes"`
	Skipped   []Skipped  `json:"skipped"`   // that were not compared
	Conflicts []Conflict `json:"conflicts"` // that nobody has decided
	Notes     []Note     `json:"notes"`     // what the last update did by itself
	LeftOut   []LeftOut  `json:"left_out"`  // by an update, and nobody has seen it
	// More counts what had no room in the list.
	More int `json:"more,omitempty"`
}

// List compares the directories. A directory within that holds more than can be looked at is
// named, and skipped.
func (m *Machine) List(ctx context.Context) (*Report, error) {
	r := &Report{Changes: []Change{}, Skipped: []Skipped{}, Conflicts: []Conflict{}}
	conflicts, err := m.Undecided(ctx)
	if err != nil {
		return nil, err
	}
	r.Conflicts = append(r.Conflicts, conflicts...)
	if r.Notes, r.More, err = m.notes(); err != nil {
		return nil, err
	}
	if r.LeftOut, err = m.LeftOut(); err != nil {
		return nil, err
	}
	for _, p := range m.Pairs {
		found, skipped, err := m.compare(ctx, p, "")
		if err != nil {
			return nil, err
		}
		r.Changes = append(r.Changes, found...)
		r.Skipped = append(r.Skipped, skipped...)
	}
	return r, nil
}

// compare lists the changes of one directory at rel and below, in the order of the paths.
func (m *Machine) compare(ctx context.Context, p Pair, rel string) ([]Change, []Skipped, error) {
	w := &walk{ctx: ctx, pair: p, owners: m.owners(), entries: m.entries, left: m.total}
	merged, image, err := p.named(rel)
	if err != nil {
		return nil, nil, err
	}
	defer merged.close()
	defer image.close()
	if err := w.visit(rel, merged, image, 0); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(w.found, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return w.found, w.skipped, nil
}

// within is the path below the pair's directory; "" where it is not below it.
func (p Pair) within(path string) string {
	rel, below := strings.CutPrefix(path, strings.TrimSuffix(p.Path, "/")+"/")
	if !below {
		return ""
	}
	return rel
}

// A walk goes over both trees at once.
type walk struct {
	ctx     context.Context
	pair    Pair
	owners  owners
	entries int // that one directory may have
	left    int // that may still be looked at
	found   []Change
	skipped []Skipped
}

// visit compares one entry, and what is in it. Either may be missing.
func (w *walk) visit(rel string, merged, image *node, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	path := w.pair.join(rel)
	change, err := compareNodes(path, merged, image, w.owners)
	if err != nil {
		// It may be damaged. It is listed, so that it hides nothing else and can be given back.
		change = newChange(path)
		change.Type, change.What = merged.kind(), []string{fmt.Sprintf("cannot be compared with the image's (%v)", err)}
	}
	if change != nil && rel != etcmerge.ListPath {
		w.found = append(w.found, *change)
	}
	return w.within(rel, merged, image, depth)
}

// within visits what is in either directory, unless that is too much.
func (w *walk) within(rel string, merged, image *node, depth int) error {
	names, err := w.both(merged, image)
	why := ""
	switch {
	case errors.Is(err, errMany):
		why = fmt.Sprintf("has more than %d entries", w.entries)
	case err != nil:
		why = unreadable(err)
	case depth >= maxDepth && len(names) > 0:
		why = fmt.Sprintf("lies %d directories deep", depth)
	case len(names) > w.left:
		why = "comes after more entries than are looked at"
	}
	if why != "" {
		w.skip(rel, why)
		return nil
	}
	w.left -= len(names)
	for _, name := range names {
		if rel == "" && name == workplace {
			continue // a command is at work, or was cut
		}
		if err := w.entry(rel, name, merged, image, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) skip(rel, why string) {
	w.skipped = append(w.skipped, Skipped{w.pair.join(rel), why})
}

func unreadable(err error) string { return fmt.Sprintf("cannot be read (%v)", err) }

// both are the names in either directory, in order.
func (w *walk) both(merged, image *node) ([]string, error) {
	var names []string
	for _, n := range []*node{merged, image} {
		if !n.isDirectory() {
			continue
		}
		more, err := n.names(w.entries)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (w *walk) entry(rel, name string, merged, image *node, depth int) error {
	m, err := merged.child(name)
	defer m.close()
	i, errs := image.child(name)
	defer i.close()
	switch err = errors.Join(err, errs); {
	case err != nil:
		w.skip(joinRel(rel, name), unreadable(err))
		return nil
	case m == nil && i == nil:
		return nil // gone meanwhile
	}
	return w.visit(joinRel(rel, name), m, i, depth+1)
}

func newChange(path string) *Change {
	c := &Change{Path: path, Kind: Changed}
	if !utf8.ValidString(path) {
		c.PathBytes = base64.StdEncoding.EncodeToString([]byte(path))
	}
	return c
}

// compareNodes is what differs between two entries; nil for nothing.
func compareNodes(path string, merged, image *node, to owners) (*Change, error) {
	c := newChange(path)
	switch {
	case merged == nil:
		c.Kind, c.Type = Removed, image.kind()
		return c, nil
	case image == nil:
		c.Kind, c.Type, c.Time = Added, merged.kind(), merged.changed(true)
		return c, nil
	}
	content, what, err := differences(merged, image, to)
	if err != nil || len(what) == 0 {
		return nil, err
	}
	c.Type, c.What, c.Time = merged.kind(), what, merged.changed(content)
	return c, nil
}

// join is the path of an entry of the pair's directory.
func (p Pair) join(rel string) string {
	if rel == "" || rel == "." {
		return p.Path
	}
	return strings.TrimSuffix(p.Path, "/") + "/" + rel
}

func joinRel(rel, name string) string {
	if rel == "" || rel == "." {
		return name
	}
	return rel + "/" + name
}

// find is the pair that a path lies in, and where in it.
func (m *Machine) find(path string) (Pair, string, error) {
	for _, p := range m.Pairs {
		if path == p.Path {
			return p, "", nil
		}
		if rel := p.within(path); rel != "" {
			return p, rel, nil
		}
	}
	var names []string
	for _, p := range m.Pairs {
		names = append(names, p.Path)
	}
	return Pair{}, "", fmt.Errorf("%s lies in none of the directories that are laid over the image's: %s", Shown(path), strings.Join(names, ", "))
}

// lookup opens an entry in both trees. Either may be missing, but not both: what one has as
// a directory may be a link in the other. The caller closes them.
func (p Pair) lookup(rel string) (merged, image *node, err error) { return p.open(rel, below) }

// named is lookup for a path that somebody typed: they are told of a link on the way.
func (p Pair) named(rel string) (merged, image *node, err error) { return p.open(rel, open) }

func (p Pair) open(rel string, here func(*os.File, string) (*node, error)) (merged, image *node, err error) {
	if merged, err = here(p.Merged, rel); err == nil {
		image, err = below(p.Image, rel)
	}
	if err == nil && merged == nil && image == nil {
		err = unix.ENOENT
	}
	if err != nil {
		merged.close()
		return nil, nil, fmt.Errorf("%s: %w", Shown(p.join(rel)), err)
	}
	return merged, image, nil
}
