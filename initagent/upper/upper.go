// Package upper keeps what may change of a system for each system of its own: the upper
// directories of its overlays, as /etc. A system that starts for the first time gets
// them from those of the system before it, merged with what its image brings
// ([halogenos.internal/boot/etcmerge]), and what the directories that all systems share
// lack of its image (see [Carry]).
//
// It refuses to change anything of another system's. What it makes has its name when it
// is complete; what it removes loses it first.
package upper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// Bind is where the root partition has the directories that all systems share.
const Bind = "bind"

// updated is where systemd notes which image a directory was last brought up to date
// for (systemd.unit(5), ConditionNeedsUpdate).
const updated = ".updated"

// Mark is the name, in a system's directory, of the file that says for which staging of
// the system it was made.
const Mark = ".made-for"

// Name is the name of a state directory on the root partition. It is flat, so that no
// entry lies inside another's.
func Name(directory string) string { return strings.ReplaceAll(strings.Trim(directory, "/"), "/", "-") }

// A Carry is what a system takes over at its first start.
type Carry struct {
	System  string // root hash of the image that starts
	From    Source
	Image   string // where that image is mounted
	Base    string // where the image of From is mounted; "" where it cannot be had
	Entries []stateconf.Entry
	Options etcmerge.Options
	Mark    string // what it is made for; [Mark] has it
	// People are the accounts that its /etc gets where From has nothing.
	People etcmerge.People
	// Progress is told how much there is to be done, and returns what is told how much is.
	Progress func(total int64) func(done int64)
	// Step is called before each change of the file system; nil does nothing.
	Step func(what string) error
}

// A Report says what came of it, by whole paths.
type Report struct {
	Kept, Merged int
	Conflicts    []etcmerge.Conflict
	Notes        []etcmerge.Note
	// LeftOut says, by whole paths, what could not be carried over, and why: at most
	// maxLeftOut, and a last one that counts the others. It is also on the list of the first
	// overlay, that of /etc (see writeList).
	LeftOut []string
}

const maxLeftOut = 100

// A Store is the root partition's file system, mounted at Root.
type Store struct{ Root string }

// own is the upper directory of an entry, or the work directory beside it.
func own(system, entry, which string) string { return path.Join(Directory, system, entry, which) }

// Upper is the upper directory that a source has for an entry; "" for none.
func (s Source) Upper(entry string) string {
	switch {
	case s.Unnamed:
		return path.Join(Unnamed, entry, "upper")
	case s.System != "":
		return own(s.System, entry, "upper")
	}
	return ""
}

// Overlay is where a system has the upper and the work directory of an entry.
func Overlay(system, entry string) (upper, work string) {
	return own(system, entry, "upper"), own(system, entry, "work")
}

// Carry makes a system's directory.
//
// It is made under another name, flushed, and renamed, which is the last write. Cut
// before that, the system has no directory still, and all of it is made again: what is
// left of the first attempt goes first. Cut after it, the system has its own. The
// source is only read. What the shared directories get is complete when it has its name
// (see fill), and is found there by the second attempt. A limit of btrfs gives way, as a flag does.
func (s Store) Carry(ctx context.Context, c Carry) (report *Report, err error) {
	err = s.unlimited(func() (err error) {
		report, err = s.carry(ctx, c)
		return err
	})
	return report, err
}

func (s Store) carry(ctx context.Context, c Carry) (*Report, error) {
	if c.Step == nil {
		c.Step = func(string) error { return nil }
	}
	if !rootHash.MatchString(c.System) {
		return nil, fmt.Errorf("%q is not the root hash of a system", c.System)
	}
	root, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Root, err)
	}
	defer unix.Close(root)
	all, err := bootsOwn(root, Directory, 0o700, c.Step)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	m := &maker{Carry: c, tidy: c.Step, root: root, all: all, report: new(Report)}
	m.Step = func(what string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.Step(what)
	}
	if err := m.clear(); err != nil {
		return nil, err
	}
	if err := s.recallLinks(m); err != nil {
		return nil, err
	}
	if err := m.run(ctx); err != nil {
		return nil, errors.Join(err, sweep(all, c.Step, func(string, error) {}))
	}
	return m.report, nil
}

// clear removes what an earlier attempt has left, of whatever system. What does not go is
// reported, and takes no name that is needed now.
func (m *maker) clear() error {
	var stays []string
	err := sweep(m.all, m.Step, func(name string, why error) {
		stays = append(stays, name)
		m.leftOut("/"+Directory)(name, "what is left of an earlier system on the root partition cannot be removed: "+why.Error())
	})
	for _, name := range stays {
		if err == nil && slices.Contains([]string{m.System + unfinished, m.System + linked + unfinished, temporary, seeding}, name) {
			_, err = aside(m.all, name, m.Step)
		}
	}
	return err
}

// makeDirectory makes a directory where it is missing, and opens it.
func makeDirectory(parent int, name string, mode uint32, step func(string) error) (*os.File, error) {
	if err := step("make " + name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(parent, name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &fs.PathError{Op: "make", Path: name, Err: err}
	}
	fd, err := beneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// bootsOwn is makeDirectory for one at the top of the root partition, in which a boot alone
// makes anything: nothing keeps it from that.
func bootsOwn(root int, name string, mode uint32, step func(string) error) (made *os.File, err error) {
	fd, err := beneath(root, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	top := os.NewFile(uintptr(fd), ".")
	defer top.Close()
	err = unfrozen(top, name, step, func() (err error) {
		made, err = makeDirectory(fd, name, mode, step)
		return err
	})
	if err != nil {
		return nil, err
	}
	thawIn(made, ".", step) // or else what follows fails, and says why
	return made, nil
}

// maker is one Carry.
type maker struct {
	Carry
	tidy          func(what string) error // the Step of what is done though time has run out
	root          int
	all           *os.File // Directory
	report        *Report
	etc           *etcmerge.Result // the plan of /etc; nil where it is not an overlay
	first         *etcmerge.Result // the plan of the first overlay, whose list has what is left out
	firstPath     string
	left          map[string]bool // what the report says is left out
	found         []etcmerge.LeftOut
	links         []link // that this system sets
	set           []link // that a system has set
	users, groups map[uint32]uint32
}

// leftOut is for what lies in the directory of an entry.
func (m *maker) leftOut(entry string) func(path, why string) {
	return func(name, why string) {
		m.find(etcmerge.LeftOut{Path: etcmerge.Name(path.Join(entry, name)), Reason: why})
	}
}

// lasts is for what each start finds again for as long as it is so.
func (m *maker) lasts(name, why string) {
	m.find(etcmerge.LeftOut{Path: etcmerge.Name(name), Reason: why, Lasts: true})
}

// find takes down, once, what is left out.
func (m *maker) find(l etcmerge.LeftOut) {
	line := fmt.Sprintf("%q: %s", string(l.Path), l.Reason)
	if len(line) > 1000 {
		line = line[:500] + "..." + line[len(line)-500:]
	}
	if m.left == nil {
		m.left = map[string]bool{}
	}
	if m.left[line] {
		return
	}
	if m.left[line] = true; len(m.left) > maxLeftOut {
		m.report.LeftOut = append(m.report.LeftOut[:maxLeftOut], fmt.Sprintf("and %d more", len(m.left)-maxLeftOut))
		return
	}
	m.report.LeftOut = append(m.report.LeftOut, line)
	m.found = append(m.found, l)
}

func (m *maker) run(ctx context.Context) error {
	name := m.System + unfinished
	fresh, err := makeDirectory(int(m.all.Fd()), name, 0o755, m.Step)
	if err != nil {
		return err
	}
	defer fresh.Close()
	w := newWriter(int(fresh.Fd()), m.Step, nil)
	if err := w.node(w.fd, Mark, etcmerge.Entry{Type: etcmerge.Regular}, strings.NewReader(m.Mark)); err != nil {
		return fmt.Errorf("make %s: %w", Mark, err)
	}
	for _, e := range overlays(m.Entries) {
		if err := m.overlay(ctx, e, int(fresh.Fd())); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if err := m.along(ctx, fresh); err != nil {
		return err
	}
	if err := m.checkOwners(ctx, int(fresh.Fd())); err != nil {
		return err
	}
	for _, e := range m.Entries {
		if e.Mode != stateconf.Bind {
			continue
		}
		if err := m.bind(ctx, e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if err := m.setLinks(); err != nil {
		return err
	}
	if err := m.writeList(int(fresh.Fd())); err != nil {
		return fmt.Errorf("%s: %w", m.firstPath, err)
	}
	if err := m.Step("flush"); err != nil {
		return err
	}
	if err := unix.Syncfs(int(m.all.Fd())); err != nil {
		return fmt.Errorf("flush the root partition: %w", err)
	}
	if err := m.Step("rename"); err != nil {
		return err
	}
	if err := unix.Renameat(int(m.all.Fd()), name, int(m.all.Fd()), m.System); err != nil {
		return fmt.Errorf("give %s its name: %w", name, err)
	}
	return m.all.Sync()
}

// overlay makes the upper and the work directory of one entry.
func (m *maker) overlay(ctx context.Context, e stateconf.Entry, fresh int) error {
	base, image, before, err := m.trees(e.Path, true)
	if err != nil {
		return err
	}
	defer closeTrees(base, image, before)
	if image == nil {
		return nil // the image has no such directory
	}
	top, err := image.Entry(".")
	if err != nil {
		return err
	}
	plan, err := m.plan(ctx, e, base, image, before)
	if err != nil {
		return err
	}
	return m.pair(fresh, Name(e.Path), func(directory int) error {
		return m.write(e, directory, plan, top, map[etcmerge.Source]*tree{
			etcmerge.FromUpper: before, etcmerge.FromImage: image, etcmerge.FromBase: base,
		})
	})
}

// pair makes the work and the upper directory of an entry, and has the upper one filled.
func (m *maker) pair(fresh int, name string, fill func(directory int) error) error {
	entry, err := makeDirectory(fresh, name, 0o755, m.Step)
	if err != nil {
		return err
	}
	defer entry.Close()
	work, err := makeDirectory(int(entry.Fd()), "work", 0o700, m.Step)
	if err != nil {
		return err
	}
	defer work.Close()
	directory, err := makeDirectory(int(entry.Fd()), "upper", 0o700, m.Step)
	if err != nil {
		return err
	}
	defer directory.Close()
	return fill(int(directory.Fd()))
}

func (m *maker) write(e stateconf.Entry, directory int, plan *etcmerge.Result, top etcmerge.Entry, sources map[etcmerge.Source]*tree) error {
	done, total := int64(0), int64(len(plan.Changes))
	tell := m.Progress(total)
	err := newWriter(directory, m.Step, m.leftOut(e.Path)).write(plan, top, sources, func() { done++; tell(done) })
	if err != nil {
		return err
	}
	m.reportPlan(e, plan)
	return nil
}

// trees opens what an entry has in the old image, in the new one, and in the upper
// directory before; nil for each that has none.
func (m *maker) trees(directory string, upper bool) (base, image, before *tree, err error) {
	relative := strings.TrimPrefix(directory, "/")
	defer func() {
		if err != nil {
			closeTrees(base, image, before)
		}
	}()
	if image, err = openIn(m.Image, "the image's "+directory, relative); err != nil {
		return base, image, before, err
	}
	if m.Base != "" {
		if base, err = openIn(m.Base, "the image before's "+directory, relative); err != nil {
			return base, image, before, fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
		}
	}
	if name := m.From.Upper(Name(directory)); upper && name != "" {
		if before, err = openTree(m.root, name, name, true); errors.Is(err, fs.ErrNotExist) {
			before, err = nil, nil
		}
	}
	for _, t := range []*tree{base, image, before} {
		if t != nil {
			t.leftOut = m.leftOut(directory)
		}
	}
	if before != nil {
		before.lower = base
	}
	return base, image, before, err
}

func openIn(root, name, directory string) (*tree, error) {
	fd, err := unix.Open(filepath.Clean(root), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(fd)
	t, err := openTree(fd, name, directory, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return t, err
}

func closeTrees(all ...*tree) {
	for _, t := range all {
		if t != nil {
			t.Close()
		}
	}
}
