package etcmerge

import (
	"cmp"
	"crypto/sha256"
	"io"
	"path"
	"slices"
	"sort"
	"strings"
)

// listMode: the list names files that not everybody may list, and has digests of them.
const listMode = 0o600

// list completes the plan with the list of conflicts: those of this merge, and those of
// the old list that are still to be decided and whose file is still there.
func (p *planner) list() (List, error) {
	list := List{From: p.options.From, To: p.options.To}
	since := p.carried()
	var err error
	if len(p.conflicts)+len(p.notes)+len(since) == 0 {
		return list, nil
	}
	if err := p.makeRoom(); err != nil {
		return list, err
	}
	p.sort()
	for _, c := range p.conflicts {
		key := keyOf(c.Conflict)
		if old, carried := since[key]; carried {
			c.Since = old.Since
			delete(since, key)
		}
		if c.State, err = p.stateInPlan(c.Conflict, c.state); err != nil {
			return list, err
		}
		list.Conflicts = append(list.Conflicts, c.Conflict)
	}
	for _, c := range since {
		if c.State, err = p.stateInPlan(c, parseState(c.State)); err != nil {
			return list, err
		}
		list.Conflicts = append(list.Conflicts, c)
	}
	slices.SortFunc(list.Conflicts, func(a, b Conflict) int {
		return cmp.Or(strings.Compare(string(a.Path), string(b.Path)), strings.Compare(string(a.Entry), string(b.Entry)))
	})
	list.Notes = p.notes
	text, err := list.Encode()
	if err != nil {
		return list, err
	}
	p.add(Change{
		Path: ListPath, Action: Generate, Reason: "what is to be decided", From: FromContent, Content: text,
		Entry: Entry{Type: Regular, Mode: listMode, Size: int64(len(text)), ModTime: p.changes[0].Entry.ModTime},
	})
	p.sort()
	return list, nil
}

type conflictKey struct{ path, entry Name }

func keyOf(c Conflict) conflictKey { return conflictKey{c.Path, c.Entry} }

// readList reads which conflicts of the old list nobody has decided.
func (p *planner) readList() error {
	f, err := p.below(p.upper, ListPath)
	if f == nil || err != nil {
		return err
	}
	if !f.is(Regular) {
		p.note(ListPath, "%s was here in place of the list of conflicts; what it listed is not known", kindOf(f.Entry))
		return nil
	}
	in, err := p.open(p.upper, ListPath)
	if err != nil {
		return err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, MaxList+1))
	if err != nil {
		return err
	}
	old, err := ParseList(text)
	if err != nil {
		p.note(ListPath, "the old list of conflicts cannot be read, what it listed is not known: %v", err)
		return nil
	}
	p.old, err = p.undecided(old, p.upper)
	return err
}

// carried are the conflicts of the old list whose file is still this machine's. What was
// left out is in now, unless this merge leaves it out again.
func (p *planner) carried() map[conflictKey]Conflict {
	again := map[conflictKey]bool{}
	for _, c := range p.conflicts {
		again[keyOf(c.Conflict)] = true
	}
	out := map[conflictKey]Conflict{}
	for _, c := range p.old {
		if c.LeftOut && !again[keyOf(c)] {
			continue
		}
		if c.Path == dirOfList || len(p.inPlan(string(c.Path))) > 0 {
			out[keyOf(c)] = c
		}
	}
	return out
}

// inPlan are the changes that write a path and what lies in it, empty where the path
// itself is not written. The plan is sorted.
func (p *planner) inPlan(path string) []Change {
	if path == "." {
		return p.changes[:1]
	}
	from := func(prefix string) int {
		return sort.Search(len(p.changes), func(i int) bool { return p.changes[i].Path != "." && p.changes[i].Path >= prefix })
	}
	i := from(path)
	if i == len(p.changes) || p.changes[i].Path != path || p.changes[i].Action == Take {
		return nil
	}
	found := []Change{p.changes[i]}
	for _, c := range p.changes[from(path+"/"):] {
		if !within(c.Path, path) {
			break
		}
		if c.Action != Take {
			found = append(found, c)
		}
	}
	return found
}

// stateInPlan is the state that a path will have in the new upper directory, empty
// where it has nothing there.
func (p *planner) stateInPlan(c Conflict, kind stateKind) (string, error) {
	changes := p.inPlan(string(c.Path))
	if len(changes) == 0 {
		return "", nil
	}
	switch kind {
	case stateEntry:
		return stateOfEntry(&changes[0].Entry), nil
	case stateLine:
		if a, ok := p.accounts[string(c.Path)]; ok {
			return stateOfLine(p.indexed.of(nil, string(c.Path), a.text), string(c.Entry)), nil
		}
		if changes[0].Entry.Type != Regular {
			return "", nil
		}
		return p.stateOfLineIn(p.sourceOf(changes[0].From), string(c.Path), string(c.Entry))
	case stateTree:
	default:
		return c.State, nil // of a kind that a later release may know
	}
	h := sha256.New()
	for _, change := range changes {
		var content []byte
		switch change.From {
		case 0:
		case FromContent:
			sum := sha256.Sum256(change.Content)
			content = sum[:]
		default:
			var err error
			if content, err = p.sum(p.sourceOf(change.From), change.Path); err != nil {
				return "", err
			}
		}
		describe(h, change.Path, &change.Entry, content)
	}
	return stateTree.of(h), nil
}

func (p *planner) sourceOf(from Source) *source {
	switch from {
	case FromImage:
		return p.theirs
	case FromBase:
		return p.base
	}
	return p.upper
}

// dirOfList is the directory of the list.
var dirOfList = Name(path.Dir(ListPath))

// makeRoom sees to the directory of the list.
func (p *planner) makeRoom() error {
	dir := string(dirOfList)
	made := Change{
		Path: dir, Action: Parent, Reason: "holds the list of what is to be decided",
		Entry: Entry{Type: Directory, Mode: 0o755, ModTime: p.changes[0].Entry.ModTime},
	}
	if before := p.inPlan(dir); len(before) > 0 {
		switch before[0].Entry.Type {
		case Directory:
			return nil
		case Whiteout:
			p.note(dir, "it was deleted here, and is back: the list of conflicts lies in it")
		default:
			p.note(dir, "%s was here and is gone: the list of conflicts needs the directory", kindOf(&before[0].Entry))
		}
		made.Entry.Opaque = true // what the image has there did not show before
	}
	t, err := p.file(p.theirs, dir)
	switch {
	case err != nil:
		return err
	case t == nil || made.Entry.Opaque:
	case t.is(Directory):
		made.Entry = *t.Entry
	default:
		p.note(dir, "%s of the image's is hidden: the list of conflicts needs the directory", kindOf(t.Entry))
	}
	p.changes = slices.DeleteFunc(p.changes, func(c Change) bool { return c.Path == dir })
	p.add(made)
	return nil
}
