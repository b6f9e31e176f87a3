package etcmerge

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strings"
	"time"
)

// listMode: the list names files that not everybody may list, and has digests of them.
const listMode = 0o600

// list completes the plan with the list of conflicts: those of this merge, and those of
// the old list that are still to be decided and whose file is still there. What an earlier
// start left out and nobody has seen is on it, too.
func (p *planner) list() (List, error) {
	list := List{From: p.options.From, To: p.options.To}
	since := p.carried()
	for _, l := range p.leftOut {
		if !l.Kept && !l.Lasts {
			list.LeftOut = append(list.LeftOut, l)
		}
	}
	room, err := p.listRoom()
	if err != nil {
		return list, err
	}
	if len(p.conflicts)+len(p.notes)+len(since)+len(list.LeftOut) == 0 {
		p.room = room // see LeaveOut
		return list, nil
	}
	p.makeRoom(room)
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
	list.clean() // what is reported is what is written down
	change, err := list.change(p.dirTime())
	if err != nil {
		return list, err
	}
	p.add(change)
	p.sort()
	return list, nil
}

// dirTime is when the directory that is merged was changed.
func (p *planner) dirTime() time.Time { return p.changes[0].Entry.ModTime }

// change writes the list.
func (l List) change(at time.Time) (Change, error) {
	text, err := l.Encode()
	return Change{
		Path: ListPath, Action: Generate, Reason: "what is to be decided", From: FromContent, Content: text,
		Entry: Entry{Type: Regular, Mode: listMode, Size: int64(len(text)), ModTime: at},
	}, err
}

// LeaveOut adds to the list what could not be carried over, of this directory and of
// others; more counts what is not among it. It returns the changes that write the list.
// They come after those of the plan, and replace what these make of the same paths.
//
// What lasts and has been seen stays seen.
func (r *Result) LeaveOut(found []LeftOut, more int) ([]Change, error) {
	if len(found) == 0 && more == 0 {
		return nil, nil
	}
	list := r.list
	list.LeftOut = slices.Clone(list.LeftOut)
	list.More += more
	for _, f := range found {
		f.Since = list.To
		if i := slices.IndexFunc(r.leftOut, f.same); i >= 0 {
			f.Since, f.Kept = r.leftOut[i].Since, f.Lasts && r.leftOut[i].Kept
		}
		list.LeftOut = append(slices.DeleteFunc(list.LeftOut, f.same), f)
	}
	var changes []Change
	if r.room != nil {
		changes = append(append(changes, r.room.aside...), r.room.Change)
		list.Notes = append(slices.Clone(list.Notes), r.room.notes...)
		for _, c := range r.room.conflicts {
			list.Conflicts = append(slices.Clone(list.Conflicts), c.Conflict)
		}
	}
	change, err := list.change(r.dirTime)
	if err != nil {
		return nil, err
	}
	return append(changes, change), nil
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
	p.leftOut = old.LeftOut
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

// A room is the directory of the list, to be made.
type room struct {
	Change
	notes []Note
	// aside is what was in its place, under another name, and conflicts list that.
	aside     []Change
	conflicts []conflict
}

// makeRoom has the plan make the directory of the list.
func (p *planner) makeRoom(r *room) {
	if r != nil {
		p.notes = append(p.notes, r.notes...)
		p.conflicts = append(p.conflicts, r.conflicts...)
		p.changes = slices.DeleteFunc(p.changes, func(c Change) bool { return c.Path == r.Path })
		for _, c := range append(r.aside, r.Change) {
			p.add(c)
		}
	}
	p.sort()
}

// listRoom is the directory of the list; nil where the plan makes it already.
func (p *planner) listRoom() (*room, error) {
	dir := string(dirOfList)
	made := &room{Change: Change{
		Path: dir, Action: Parent, Reason: "holds the list of what is to be decided",
		Entry: Entry{Type: Directory, Mode: 0o755, ModTime: p.dirTime()},
	}}
	note := func(format string, args ...any) {
		made.notes = append(made.notes, Note{dirOfList, fmt.Sprintf(format, args...)})
	}
	if before := p.inPlan(dir); len(before) > 0 {
		switch before[0].Entry.Type {
		case Directory:
			return nil, nil
		case Whiteout:
			note("it was deleted here, and is back: the list of conflicts lies in it")
		default:
			if err := p.moveAside(made, before[0]); err != nil {
				return nil, err
			}
		}
		made.Entry.Opaque = true // what the image has there did not show before
	}
	t, err := p.file(p.theirs, dir)
	switch {
	case err != nil:
		return nil, err
	case t == nil || made.Entry.Opaque:
	case t.is(Directory):
		made.Entry = *t.Entry
	default:
		note("%s of the image's is hidden: the list of conflicts needs the directory", kindOf(t.Entry))
	}
	return made, nil
}

// moveAside keeps what this machine has in place of the list's directory under another
// name, and lists it.
func (p *planner) moveAside(r *room, c Change) error {
	was, from := c.Path, p.sourceOf(c.From)
	for taken := true; taken; {
		c.Path += ".before"
		_, theirs, ours, err := p.three(c.Path, scope{theirs: true})
		if err != nil {
			return err
		}
		taken = theirs != nil || ours != nil || len(p.inPlan(c.Path)) > 0
	}
	if c.Entry.Type == Regular && c.From != FromContent {
		content, err := p.upTo(from, was, MaxAccounts)
		if err != nil {
			return err
		}
		if len(content) > MaxAccounts {
			r.notes = append(r.notes, Note{Name(was), fmt.Sprintf("a file of more than %d MiB was here and is gone: the list of conflicts needs the directory", MaxAccounts>>20)})
			return nil
		}
		c.From, c.Content, c.Entry.Size = FromContent, content, int64(len(content))
	}
	c.Action, c.Reason = Clash, fmt.Sprintf("%s that was %s: the list of conflicts needs the directory", kindOf(&c.Entry), was)
	var sum []byte
	if c.Entry.Type == Regular {
		digest := sha256.Sum256(c.Content)
		sum = digest[:]
	}
	h := sha256.New()
	describe(h, c.Path, &c.Entry, sum)
	r.aside = append(r.aside, c)
	r.conflicts = append(r.conflicts, conflict{Conflict{Path: Name(c.Path), Reason: c.Reason, Since: p.options.To, State: stateTree.of(h)}, stateTree})
	return nil
}
