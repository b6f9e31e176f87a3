package etcmerge

import (
	"fmt"
	"slices"
)

// otherType is for a path that is something else in the image than it is here; hidden is
// that of the directory that it lies in.
func (p *planner) otherType(b, t, o *file, hidden bool) error {
	if p.base == nil {
		p.note(o.path, "%s from before hides %s of the image's", kindOf(o.Entry), kindOf(t.Entry))
		return p.whole(Keep, nil, o, "kept from the version before")
	}
	here, err := p.unchangedHere(b, o, hidden)
	if err != nil {
		return err
	}
	if here {
		p.take(o.path, "changed by the image alone")
		return nil
	}
	there, err := p.sameTree(b, t)
	if err != nil {
		return err
	}
	if hidden {
		b = nil // nothing of it shows here
	}
	if there {
		return p.whole(Keep, b, o, kindOf(o.Entry)+" here")
	}
	return p.whole(Clash, b, o, fmt.Sprintf("%s here, %s in the image", kindOf(o.Entry), kindOf(t.Entry)))
}

// unchangedHere reports whether what this machine has at a path, with all that lies in
// it, is what the old image had.
func (p *planner) unchangedHere(b, o *file, hidden bool) (bool, error) {
	same, err := p.same(b, o)
	if err != nil || !same || !o.is(Directory) {
		return same, err
	}
	names, err := p.names(p.upper, o.path)
	if err != nil {
		return false, err
	}
	if hidden = hidden || o.Opaque; hidden {
		was, err := p.names(p.base, o.path)
		if err != nil || !slices.Equal(names, was) {
			return false, err
		}
	}
	for _, name := range names {
		was, _, now, err := p.three(join(o.path, name), scope{base: true})
		if err != nil {
			return false, err
		}
		if now.is(Whiteout) {
			now = nil
		}
		if same, err := p.unchangedHere(was, now, hidden); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// whole keeps what this machine has at a path with all that lies in it, the old image's
// part of it too: nothing of the new image's shows there.
func (p *planner) whole(action Action, b, o *file, reason string) error {
	if action == Clash {
		p.clash(o.path, "", stateTree, reason)
	}
	p.keep(action, o, reason)
	if !o.is(Directory) {
		return nil
	}
	fromBase := b.is(Directory) && !(o.from == p.upper && o.Opaque)
	var names []string
	var err error
	if o.from == p.upper {
		if names, err = p.names(p.upper, o.path); err != nil {
			return err
		}
	}
	if fromBase {
		was, err := p.names(p.base, o.path)
		if err != nil {
			return err
		}
		names = append(names, was...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		path := join(o.path, name)
		if path == ListPath {
			continue
		}
		var was, now *file
		if fromBase {
			if was, err = p.file(p.base, path); err != nil {
				return err
			}
		}
		if o.from == p.upper {
			if now, err = p.file(p.upper, path); err != nil {
				return err
			}
		}
		if now == nil {
			now = was
		}
		if now == nil || now.is(Whiteout) {
			continue
		}
		if err := p.whole(Keep, was, now, "lies in what is kept whole"); err != nil {
			return err
		}
	}
	return nil
}
