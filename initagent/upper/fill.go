package upper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/subvolume"
)

// The entry whose account files lead from the image's users to this machine's, and the
// one that has systemd's note about the image.
const (
	etc      = "/etc"
	variable = "/var"
)

// Names of what is not complete yet: in [Directory], where root alone can go, and beside
// its place, where that is on another file system or subvolume. A user who may write there
// can have taken the name: what has it goes, whatever it is.
const (
	temporary = "new" + unfinished
	beside    = ".halogen" + unfinished
)

// bind gives a shared directory what a new image has and this machine lacks. One that
// is not there is seeded from the image as a whole when it is mounted.
func (m *maker) bind(ctx context.Context, e stateconf.Entry) error {
	base, image, _, err := m.trees(e.Path, false)
	if err != nil {
		return err
	}
	defer closeTrees(base, image)
	if image == nil {
		return nil
	}
	name := path.Join(Bind, Name(e.Path))
	own, err := openTree(m.root, name, name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return m.seed(ctx, e, image)
	}
	if err != nil {
		return err
	}
	defer own.Close()
	// A user who owns something there can give it more attributes than can be listed.
	own.plain = true
	if base != nil {
		base.plain = true
	}
	f := &fill{maker: m, entryPath: e.Path, base: base, image: image, own: own}
	if err := f.directory(ctx, ".", true); err != nil {
		return err
	}
	if err := f.place(); err != nil {
		return err
	}
	if e.Path != variable {
		return nil
	}
	return f.forget(updated)
}

// seed makes a shared directory that is not there, where the image's numbers of users or
// groups mean others here: who mounts it copies it as it is.
func (m *maker) seed(ctx context.Context, e stateconf.Entry, image *tree) error {
	if len(m.users)+len(m.groups) == 0 {
		return nil
	}
	top, err := image.Entry(".")
	if err != nil {
		return err
	}
	all, err := bootsOwn(m.root, Bind, 0o755, m.Step)
	if err != nil {
		return err
	}
	defer all.Close()
	in, err := m.besides(all)
	if err != nil {
		return err
	}
	if err := remove(in, seeding, m.Step); err != nil {
		return err
	}
	if e.GoesBack() {
		if err := m.makeSubvolume(in, seeding); err != nil {
			return err
		}
	}
	fresh, err := makeDirectory(int(in.Fd()), seeding, 0o700, m.Step)
	if err != nil {
		return err
	}
	defer fresh.Close()
	own := &tree{name: seeding, fd: int(fresh.Fd()), buf: make([]byte, maxXattrs)}
	f := &fill{maker: m, entryPath: e.Path, image: image, own: own, whole: true}
	if err := f.directory(ctx, ".", false); err != nil {
		return err
	}
	m.owners().Translate(&top)
	if err := f.write(fresh, top); err != nil {
		return err
	}
	if err := m.Step("flush " + seeding); err != nil {
		return err
	}
	if err := unix.Syncfs(int(fresh.Fd())); err != nil {
		return err
	}
	if err := m.Step("rename " + seeding); err != nil {
		return err
	}
	return unix.Renameat(int(in.Fd()), seeding, int(all.Fd()), Name(e.Path))
}

// besides is where something is made that is to be moved to a directory: in [Directory], which
// each attempt clears, or there, where one of both is a subvolume of its own, and nothing can be
// moved from one to the other.
func (m *maker) besides(to *os.File) (*os.File, error) {
	var here, there unix.Stat_t
	if err := errors.Join(unix.Fstat(int(m.all.Fd()), &here), unix.Fstat(int(to.Fd()), &there)); err != nil {
		return nil, err
	}
	if here.Dev == there.Dev {
		return m.all, nil
	}
	return to, nil
}

// makeSubvolume makes an empty one, where the file system has them.
func (m *maker) makeSubvolume(in *os.File, name string) error {
	all := int(in.Fd())
	btrfs, err := subvolume.Supported(all)
	if err != nil || !btrfs {
		return err
	}
	if err := m.Step("make subvolume " + name); err != nil {
		return err
	}
	return subvolume.Create(all, name)
}

// seeding is the name of a shared directory that is being made.
const seeding = "bind" + unfinished

// owners leads from the image's users and groups to this machine's.
func (m *maker) owners() etcmerge.Owners {
	return etcmerge.Owners{Users: m.users, Groups: m.groups}
}

// fill is one shared directory.
type fill struct {
	*maker
	entryPath        string
	base, image, own *tree // base is nil where it is not known
	whole            bool  // it is being made
	looked           int

	plan etcmerge.Result // what is to be made
	tops []string        // those of its entries that lie in a directory which is there
	// around are the directories that they lie in.
	around map[string]bool
}

// directory goes through a directory of the image, and plans what this machine lacks.
// there: this machine has the directory.
func (f *fill) directory(ctx context.Context, directory string, there bool) error {
	names, err := f.image.Names(directory)
	if err != nil {
		return err
	}
	for _, name := range names {
		if f.looked++; f.looked > etcmerge.MaxEntries {
			return fmt.Errorf("the image has more than %d entries", etcmerge.MaxEntries)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.entry(ctx, path.Join(directory, name), there); err != nil {
			return err
		}
	}
	return nil
}

func (f *fill) entry(ctx context.Context, name string, there bool) error {
	fresh, err := f.entryOf(f.image, name)
	if err != nil || fresh == nil {
		return err
	}
	have, err := f.entryOf(f.own, name)
	if err != nil {
		return err
	}
	was, err := f.was(name)
	if err != nil {
		return err
	}
	switch {
	case have == nil && f.deleted(was, fresh):
		return nil
	case have == nil:
		f.lacks(name, *fresh, there)
	case f.follows(name, was, have, fresh):
		l := link{Entry: etcmerge.Name(f.entryPath), Path: etcmerge.Name(name), From: etcmerge.Name(have.Target), To: etcmerge.Name(fresh.Target)}
		if !slices.Contains(f.links, l) {
			f.links = append(f.links, l)
		}
	}
	if fresh.Type != etcmerge.Directory || have != nil && have.Type != etcmerge.Directory {
		return nil
	}
	return f.directory(ctx, name, have != nil)
}

// deleted reports whether what is missing here was deleted by somebody. Releases that kept
// one state for all systems never made what a later image brought: a directory that such
// a machine lacks may be one of those, and a link costs nothing.
func (f *fill) deleted(was, fresh *etcmerge.Entry) bool {
	kind := fresh.Type
	switch {
	case f.whole:
		return false
	case kind != etcmerge.Directory && kind != etcmerge.Regular && kind != etcmerge.Link:
		return true
	case f.From.Unnamed && kind != etcmerge.Regular:
		return false
	}
	return was != nil
}

// follows reports whether a link is an image's still, and leads elsewhere now.
func (f *fill) follows(name string, was, have, fresh *etcmerge.Entry) bool {
	return was != nil && was.Type == etcmerge.Link && have.Type == etcmerge.Link && fresh.Type == etcmerge.Link &&
		have.Target != fresh.Target && f.unchanged(f.entryPath, name, was, have)
}

// entryOf is what a tree has at a path; nil where it has nothing.
func (f *fill) entryOf(t *tree, name string) (*etcmerge.Entry, error) {
	e, err := t.Entry(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &e, err
}

// was is what the image before had there; nil where it had nothing or is not known.
func (f *fill) was(name string) (*etcmerge.Entry, error) {
	if f.base == nil {
		return nil, nil
	}
	e, err := f.entryOf(f.base, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
	}
	return e, nil
}

// lacks plans an entry that this machine lacks.
func (f *fill) lacks(name string, e etcmerge.Entry, there bool) {
	if there {
		f.lead(path.Dir(name))
		f.tops = append(f.tops, name)
	}
	f.owners().Translate(&e)
	f.plan.Changes = append(f.plan.Changes, etcmerge.Change{Path: name, Action: etcmerge.Keep, Entry: e, From: etcmerge.FromImage})
}

// lead plans the directories that lead to one, for as long as it is made elsewhere.
func (f *fill) lead(directory string) {
	if directory == "." || f.around[directory] {
		return
	}
	f.lead(path.Dir(directory))
	if f.around == nil {
		f.around = map[string]bool{}
	}
	f.around[directory] = true
	f.plan.Changes = append(f.plan.Changes, etcmerge.Change{Path: directory, Action: etcmerge.Parent, Entry: bare})
}

// bare is a directory that nobody but root enters.
var bare = etcmerge.Entry{Type: etcmerge.Directory, Mode: 0o700, ModTime: time.Unix(0, 0)}

// write makes what is planned in a directory.
func (f *fill) write(directory *os.File, top etcmerge.Entry) error {
	done, tell := int64(0), f.Progress(int64(len(f.plan.Changes)))
	w := newWriter(int(directory.Fd()), f.Step, f.leftOut(f.entryPath))
	return w.write(&f.plan, top, map[etcmerge.Source]*tree{etcmerge.FromImage: f.image}, func() { done++; tell(done) })
}

// place makes what this machine lacks.
//
// All of it is made elsewhere on the file system, with owners, modes and attributes, and
// flushed, once: to flush each file would take minutes. Then what is missing as a whole is
// renamed into its place. Cut before that, it is missing still; cut among these, some is
// this machine's, which is not touched again, and the next attempt makes the rest.
func (f *fill) place() error {
	if len(f.tops) == 0 {
		return nil
	}
	where, as, err := f.workplace()
	if err != nil {
		return err
	}
	defer where.Close()
	if err := remove(where, as, f.Step); err != nil {
		return err
	}
	apart, err := f.placeFrom(where, as)
	if err := errors.Join(err, remove(where, as, f.tidy)); err != nil {
		return err
	}
	return f.oneByOne(apart)
}

// workplace is where new entries are made: in [Directory], where root alone can go, or in
// the shared directory, where that is a subvolume.
func (f *fill) workplace() (where *os.File, as string, err error) {
	var own, all unix.Stat_t
	if err := errors.Join(unix.Fstat(f.own.fd, &own), unix.Fstat(int(f.all.Fd()), &all)); err != nil {
		return nil, "", err
	}
	if own.Dev == all.Dev {
		where, err = reopen(f.all)
		return where, temporary, err
	}
	fd, err := beneath(f.own.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), f.entryPath), beside, nil
}

// placeFrom returns those that cannot be made there: their place is on another subvolume.
func (f *fill) placeFrom(where *os.File, as string) (apart map[string]bool, err error) {
	apart = map[string]bool{}
	fresh, err := makeDirectory(int(where.Fd()), as, 0o700, f.Step)
	if unfit(err) { // the shared directory is immutable, but what lies in it need not be
		for _, name := range f.tops {
			apart[name] = true
		}
		return apart, nil
	}
	if err != nil {
		return nil, err
	}
	defer fresh.Close()
	if err := f.write(fresh, bare); err != nil {
		return nil, err
	}
	if err := f.Step("flush " + as); err != nil {
		return nil, err
	}
	if err := unix.Syncfs(int(fresh.Fd())); err != nil {
		return nil, fmt.Errorf("flush the root partition: %w", err)
	}
	for _, name := range f.tops {
		switch err := f.move(int(fresh.Fd()), name); {
		case errors.Is(err, unix.EXDEV):
			apart[name] = true
		case unfit(err):
			f.leftOut(f.entryPath)(name, "left out: "+err.Error())
		case err != nil && !errors.Is(err, fs.ErrNotExist): // it is left out
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
	}
	return apart, nil
}

func (f *fill) move(fresh int, name string) error {
	from, err := beneath(fresh, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := beneath(f.own.fd, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := f.Step("rename " + name); err != nil {
		return err
	}
	return unix.Renameat(from, path.Base(name), to, path.Base(name))
}

// oneByOne makes entries, and what lies in them, beside their places.
func (f *fill) oneByOne(tops map[string]bool) error {
	top := ""
	for _, c := range f.plan.Changes {
		if tops[c.Path] {
			top = c.Path
		} else if top == "" || !strings.HasPrefix(c.Path, top+"/") {
			continue
		}
		if err := f.appear(c.Path, c.Entry); err != nil {
			return err
		}
	}
	return nil
}

// appear puts one entry into its place. Where its directory is left out, so is it.
func (f *fill) appear(name string, e etcmerge.Entry) error {
	leftOut := f.leftOut(f.entryPath)
	err := put(f.all, f.own, placing{name, e, f.image, f.Step, leftOut})
	if unfit(err) {
		leftOut(name, "left out: "+err.Error())
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// forget removes a file at the top.
func (f *fill) forget(name string) error {
	have, err := f.entryOf(f.own, name)
	if err != nil || have == nil || have.Type == etcmerge.Directory {
		return err
	}
	if err := f.Step("remove " + name); err != nil {
		return err
	}
	fd, err := beneath(f.own.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Unlinkat(fd, name, 0)
	if unfit(err) {
		f.leftOut(f.entryPath)(name, "it should be removed, and stays: "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
