package etcmerge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// neverKept is systemd's mark that a directory was updated. Without it, what waits for
// ConditionNeedsUpdate= runs at the first start of a new image.
const neverKept = ".updated"

// madeAgain are files that programs make again, of others, at the first start of an image:
// an old one would only hide the image's.
var madeAgain = []string{".pwd.lock", "ld.so.cache", "mtab", "udev/hwdb.bin"}

// machineID says which machine this is, and is never the image's business (machine-id(5)).
// hostname says so, too: nobody misses what the image has there.
const machineID, hostname = "machine-id", "hostname"

// backups are what the account tools copy before they write. They say what was here.
var backups = []string{"passwd-", "group-", "shadow-", "gshadow-", "subuid-", "subgid-"}

// A planner makes one plan.
type planner struct {
	reader
	base, theirs, upper *source
	options             Options

	changes   []Change
	written   int // changes that write something
	conflicts []conflict
	notes     []Note

	old      []Conflict // of the old list, undecided
	leftOut  []LeftOut  // of the old list
	room     *room      // for a list that the plan does not write
	accounts map[string]account
	notText  map[string]bool // account files of this machine's that are not text
	owners   owners
	lost     map[string]bool // what noteLost has said
	budget   budget
}

// conflict is one whose state is known once the plan is made.
type conflict struct {
	Conflict
	state stateKind
}

// scope says what the directory that is being merged is on each side.
type scope struct {
	base, theirs bool // they have a directory there
	// hidden: what the upper directory does not have is not there, since it, or one
	// that it lies in, is opaque or lies over no directory. The kernel marks a directory
	// that was made in such a one with nothing.
	hidden bool
}

func newPlanner(ctx context.Context, base, theirs, upper Tree, options Options) *planner {
	p := &planner{
		reader:  reader{ctx: ctx, masked: options.Masked},
		theirs:  &source{tree: theirs, name: "the new image"},
		upper:   &source{tree: upper, name: "the upper directory", upper: true},
		options: options,
		lost:    map[string]bool{},
		notText: map[string]bool{},
		budget:  budget{ctx: ctx, steps: planSteps, content: maxContent},
	}
	if base != nil {
		p.base = &source{tree: base, name: "the old image", mark: ErrBase}
	}
	return p
}

func (p *planner) plan() (*Result, error) {
	if err := p.readList(); err != nil {
		return nil, err
	}
	if err := p.numbers(); err != nil {
		return nil, err
	}
	if err := p.top(); err != nil {
		return nil, err
	}
	if len(p.owners.theirs.Users)+len(p.owners.theirs.Groups) > 0 {
		if err := p.renumber(); err != nil {
			return nil, err
		}
	}
	p.sort()
	list, err := p.list()
	if err != nil {
		return nil, err
	}
	return &Result{
		Changes: p.changes, Conflicts: list.Conflicts, Notes: list.Notes,
		Users: p.owners.theirs.Users, Groups: p.owners.theirs.Groups,
		owners: p.owners, list: list, leftOut: p.leftOut, room: p.room, dirTime: p.dirTime(),
	}, nil
}

// numbers decides whose number is whose, before anything that belongs to somebody.
func (p *planner) numbers() error {
	switch {
	case !p.options.Other:
		if err := p.mergeAccounts(); err != nil {
			return err
		}
	case p.options.Etc != nil:
		p.owners = p.options.Etc.owners
	}
	if p.theirs.owners = p.owners.theirs; p.base != nil {
		p.base.owners = p.owners.base
	}
	return nil
}

// generated are files that are made again at the first start.
func (p *planner) generated(path string) bool {
	return path == neverKept || !p.options.Other && slices.Contains(madeAgain, path)
}

// sort puts a directory before what lies in it.
func (p *planner) sort() {
	slices.SortStableFunc(p.changes, func(a, b Change) int {
		if a.Path == "." || b.Path == "." {
			return cmp.Compare(btoi(a.Path != "."), btoi(b.Path != "."))
		}
		return strings.Compare(a.Path, b.Path)
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *planner) add(c Change) {
	if c.Action != Take {
		p.written++
	}
	p.changes = append(p.changes, c)
}

func (p *planner) take(path, reason string) { p.add(Change{Path: path, Action: Take, Reason: reason}) }

// keep puts a file of this machine's into the new upper directory as it is.
func (p *planner) keep(action Action, f *file, reason string) {
	e := *f.Entry
	// With a base, what is deleted below has whiteouts of its own.
	e.Opaque = e.Opaque && f.is(Directory) && p.base == nil
	p.add(Change{Path: f.path, Action: action, Reason: reason, Entry: e, From: p.fromOf(f)})
}

func (p *planner) fromOf(f *file) Source {
	switch {
	case !f.is(Regular):
		return 0
	case f.from == p.upper:
		return FromUpper
	case f.from == p.theirs:
		return FromImage
	}
	return FromBase
}

func (p *planner) note(path, format string, args ...any) {
	p.notes = append(p.notes, Note{Name(path), fmt.Sprintf(format, args...)})
}

// clash lists a conflict.
func (p *planner) clash(path, entry string, state stateKind, reason string) {
	if i := len(p.conflicts) - 1; i >= 0 && p.conflicts[i].Path == Name(path) && p.conflicts[i].Entry == Name(entry) {
		p.conflicts[i].Reason += "; " + reason
		return
	}
	p.conflicts = append(p.conflicts, conflict{Conflict{Path: Name(path), Entry: Name(entry), Reason: reason, Since: p.options.To}, state})
}

// top merges the directory itself, which the plan always has.
func (p *planner) top() error {
	b, t, o, err := p.three(".", scope{base: p.base != nil, theirs: true})
	if err != nil {
		return err
	}
	notDirectory := errors.New("it is not a directory")
	switch {
	case p.base != nil && !b.is(Directory):
		return p.base.fail(".", notDirectory)
	case !t.is(Directory):
		return p.theirs.fail(".", notDirectory)
	case !o.is(Directory):
		return p.upper.fail(".", notDirectory)
	}
	if err := p.children(".", scope{base: b != nil, theirs: true, hidden: b == nil || o.Opaque}); err != nil {
		return err
	}
	return p.directory(b, t, o, true)
}

// three reads what the sides have at a path: o is the upper directory's, which may be a
// whiteout.
func (p *planner) three(path string, in scope) (b, t, o *file, err error) {
	if in.base {
		if b, err = p.file(p.base, path); err != nil {
			return nil, nil, nil, err
		}
	}
	if in.theirs {
		if t, err = p.file(p.theirs, path); err != nil {
			return nil, nil, nil, err
		}
	}
	o, err = p.file(p.upper, path)
	return b, t, o, err
}

// children merges what lies in a directory.
func (p *planner) children(dir string, in scope) error {
	names, err := p.names(p.upper, dir)
	if err != nil {
		return err
	}
	if in.hidden && in.base {
		was, err := p.names(p.base, dir)
		if err != nil {
			return err
		}
		names = append(names, was...)
	}
	if dir == "." {
		for path := range p.accounts {
			names = append(names, path)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := p.one(join(dir, name), in); err != nil {
			return err
		}
	}
	return nil
}

// one decides what becomes of one path.
func (p *planner) one(path string, in scope) error {
	if path == ListPath {
		return nil // made by this plan
	}
	b, t, o, err := p.three(path, in)
	if err != nil {
		return err
	}
	if p.generated(path) && !o.is(Directory) {
		p.take(path, "made again at the first start")
		return nil
	}
	if _, is := p.accounts[path]; is && o == nil {
		if o = t; p.base != nil {
			o = b
		}
	}
	if path == machineID && !p.options.Other && o != nil {
		if own, err := p.filledIn(b, t, o); err != nil || own {
			return err
		}
	}
	if o == nil || o.Type == Whiteout {
		return p.deleted(path, b, t, o)
	}
	switch {
	case o.is(Directory) && (t == nil || t.is(Directory)):
		return p.mergeDirectory(b, t, o, in.hidden)
	case t == nil:
		return p.dropped(b, o)
	case o.Type == t.Type:
		return p.mergeFile(b, t, o)
	}
	return p.otherType(b, t, o, in.hidden)
}

// filledIn keeps a machine ID that is this machine's, without a conflict: the image's is
// empty or says "uninitialized" until a first boot fills it in.
func (p *planner) filledIn(b, t, o *file) (bool, error) {
	reason := "deleted here"
	switch o.Type {
	case Directory:
		return false, nil
	case Whiteout:
		if t == nil {
			return false, nil
		}
	default:
		for _, image := range []*file{b, t} {
			if same, err := p.sameContent(image, o); err != nil || same {
				return false, err
			}
		}
		reason = "says which machine this is"
	}
	p.keep(Keep, o, reason)
	return true, nil
}

// deleted is for what is in an image and was deleted here: o is a whiteout, or nothing
// in a directory that was made again.
func (p *planner) deleted(path string, b, t, o *file) error {
	gone := Change{Path: path, Action: Keep, Reason: "deleted here", Entry: Entry{Type: Whiteout}}
	switch {
	case t == nil:
		p.take(path, "deleted here, and not in the image")
		return nil
	case p.base == nil:
		p.add(gone)
		return nil
	case b == nil:
		p.take(path, "new in the image")
		return nil
	case p.options.Masked && o == nil:
		gone.Action, gone.Reason = Clash, "not here, though nobody is known to have deleted it"
		p.clash(path, "", stateTree, gone.Reason)
		p.add(gone)
		return nil
	}
	same, err := p.sameTree(b, t)
	if err != nil {
		return err
	}
	if !same {
		gone.Action, gone.Reason = Clash, "deleted here, changed in the image"
		p.clash(path, "", stateTree, gone.Reason)
	}
	p.add(gone)
	return nil
}

// dropped is for a file that the new image does not have.
func (p *planner) dropped(b, o *file) error {
	if b == nil {
		p.keep(Keep, o, "added here")
		return nil
	}
	same, err := p.same(b, o)
	if err != nil {
		return err
	}
	if same {
		p.take(o.path, "no longer in the image")
		return nil
	}
	p.keep(Clash, o, "changed here, no longer in the image")
	p.clash(o.path, "", stateTree, "changed here, no longer in the image")
	return nil
}

// mergeDirectory merges a directory of this machine's with one of the image's, or with
// none; hidden is that of the directory that it lies in.
func (p *planner) mergeDirectory(b, t, o *file, hidden bool) error {
	if o.Opaque && p.base == nil {
		return p.whole(Keep, nil, o, "made here")
	}
	if !b.is(Directory) && t == nil && b != nil {
		return p.whole(Clash, nil, o, "replaced here by a directory, no longer in the image")
	}
	before := p.written
	if err := p.children(o.path, scope{base: b.is(Directory), theirs: t != nil, hidden: hidden || o.Opaque || !b.is(Directory)}); err != nil {
		return err
	}
	if !b.is(Directory) {
		b = nil
	}
	return p.directory(b, t, o, p.written > before)
}

// directory adds a directory with its own metadata; needed says that something lies in
// it.
func (p *planner) directory(b, t, o *file, needed bool) error {
	if t == nil {
		same, err := p.same(b, o)
		switch {
		case err != nil:
			return err
		case b == nil:
			p.keep(Keep, o, "added here")
		case !same:
			p.keep(Clash, o, "changed here, no longer in the image")
			p.clash(o.path, "", stateEntry, "permissions changed here, no longer in the image")
		case needed:
			p.keep(Parent, o, "holds what was changed here")
		default:
			p.take(o.path, "no longer in the image")
		}
		return nil
	}
	merged, clashes, err := p.metadata(b, t, o, false)
	if err != nil {
		return err
	}
	merged.Opaque = false
	p.noteLost(t, &merged)
	signed(&merged, t.raw)
	c := Change{Path: o.path, Action: Merge, Reason: "permissions or owner differ here", Entry: merged}
	switch asImage := metadataOf(&merged).equal(metadataOf(t.Entry)); {
	case len(clashes) > 0:
		c.Action, c.Reason = Clash, strings.Join(clashes, "; ")
		p.clash(o.path, "", stateEntry, c.Reason)
	case asImage && !needed:
		p.take(o.path, "as in the image")
		return nil
	case asImage:
		c.Action, c.Reason = Parent, "holds what was changed here"
	}
	p.add(c)
	return nil
}

// metadata merges; changed says that the content is not the image's. Without the old image
// nobody can say who changed what, so nothing is a clash.
func (p *planner) metadata(b, t, o *file, changed bool) (Entry, []string, error) {
	ours, err := p.asHere(b, o)
	if err == nil && ours == o.Entry {
		ours, err = p.asHere(t, o)
	}
	if err != nil {
		return Entry{}, nil, err
	}
	merged, clashes := mergeMetadata(b.entry(), t.Entry, ours, changed)
	if p.base == nil {
		clashes = nil
	}
	return merged, clashes, nil
}
