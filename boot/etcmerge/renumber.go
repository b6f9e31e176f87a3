package etcmerge

// renumber adds the image's files that belong to somebody with another number here,
// and the directories above them.
func (p *planner) renumber() error {
	at := map[string]int{}
	for i, c := range p.changes {
		at[c.Path] = i
	}
	_, err := p.renumberIn(".", at)
	return err
}

func (p *planner) renumberIn(dir string, at map[string]int) (needed bool, err error) {
	names, err := p.names(p.theirs, dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		path := join(dir, name)
		if path == ListPath {
			continue
		}
		t, err := p.file(p.theirs, path)
		if err != nil {
			return false, err
		}
		i, planned := at[path]
		if t == nil || planned && p.changes[i].Action != Take && (!t.is(Directory) || !p.changes[i].shows()) {
			continue // this machine's is there
		}
		below := false
		if t.is(Directory) {
			if below, err = p.renumberIn(path, at); err != nil {
				return false, err
			}
		}
		if planned && p.changes[i].Action != Take {
			continue
		}
		c := Change{Path: path, Action: Parent, Reason: "holds what has another owner here", Entry: *t.Entry}
		if t.raw != t.Entry {
			c.Action, c.Reason, c.From = Merge, "its owner has another number here", p.fromOf(t)
			p.noteLost(t, t.Entry)
		} else if !below {
			continue
		}
		needed = true
		if planned {
			p.changes[i] = c
		} else {
			p.add(c)
		}
	}
	return needed, nil
}

// shows reports whether the image's files show through a directory of the plan.
func (c Change) shows() bool { return c.Entry.Type == Directory && !c.Entry.Opaque }
