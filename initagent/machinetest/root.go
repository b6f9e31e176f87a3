package machinetest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/subvolume"
	"halogenos.internal/initagent/upper"
)

// Gone is how the simulated root partition keeps a whiteout.
const Gone = "\x00gone"

// memTree is a directory in memory: its files by their paths. It implements
// etcmerge.Tree.
type memTree map[string]string

func (t memTree) Entry(name string) (etcmerge.Entry, error) {
	text, there := t[name]
	switch {
	case text == Gone && there:
		return etcmerge.Entry{Type: etcmerge.Whiteout}, nil
	case there:
		return etcmerge.Entry{Type: etcmerge.Regular, Mode: 0o644, Size: int64(len(text))}, nil
	}
	if names, _ := t.Names(name); len(names) > 0 || name == "." {
		return etcmerge.Entry{Type: etcmerge.Directory, Mode: 0o755}, nil
	}
	return etcmerge.Entry{}, fs.ErrNotExist
}

func (t memTree) Names(directory string) (names []string, err error) {
	for name := range t {
		if directory != "." {
			var below bool
			if name, below = strings.CutPrefix(name, directory+"/"); !below {
				continue
			}
		}
		first, _, _ := strings.Cut(name, "/")
		names = append(names, first)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (t memTree) Open(name string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(t[name])), nil
}

// below are the files of a directory of the root partition.
func (s Store) below(directory string) memTree {
	out := memTree{}
	for name, text := range s.files() {
		if own, ok := strings.CutPrefix(name, directory+"/"); ok {
			out[own] = string(text)
		}
	}
	return out
}

func (s Store) Names(name string) ([]string, error) {
	if s.M.UnreadableFile == name {
		return nil, syscall.EIO
	}
	return s.below(name).Names(".")
}

func (s Store) Discard(name string) error {
	if len(s.below(name)) == 0 {
		return nil
	}
	s.M.op("root discard " + name)
	if name == s.M.StuckFile {
		return syscall.EIO
	}
	maps.DeleteFunc(s.files(), func(have string, _ []byte) bool { return strings.HasPrefix(have, name+"/") })
	s.M.durable++
	return nil
}

// ClearBut takes the names of what goes one after the other.
func (s Store) ClearBut(in []string, keep func(name string) bool) (stays []string, err error) {
	gone := map[string]bool{}
	for name := range s.files() {
		for _, directory := range in {
			below, inside := strings.CutPrefix(name, directory+"/")
			if directory == "." {
				below, inside = name, true
			}
			if own, _, _ := strings.Cut(below, "/"); inside {
				if at := path.Join(directory, own); !slices.Contains(in, at) && !keep(at) {
					gone[at] = true
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		s.M.op("root clear " + name)
		if name == s.M.StuckFile {
			return nil, fmt.Errorf("remove %s: %w", name, syscall.EIO)
		}
		maps.DeleteFunc(s.files(), func(have string, _ []byte) bool { return have == name || strings.HasPrefix(have, name+"/") })
		s.M.durable++
	}
	return s.M.Stays, nil
}

// Disarm implements hw.Store: the files of a simulated machine are not programs.
func (s Store) Disarm(name string, _ func(int)) ([]string, error) {
	s.M.op("root disarm " + name)
	return nil, nil
}

// RootsOwn implements hw.Store.
func (s Store) RootsOwn(name string, mode fs.FileMode) error {
	s.M.op(fmt.Sprintf("root own %s %o", name, mode))
	return nil
}

func (s Store) Accounts(from upper.Source, _ string) (map[string][]byte, error) {
	files, ours := map[string][]byte{}, s.below(from.Upper("etc"))
	for _, file := range etcmerge.AccountFiles() {
		text, there := s.M.Releases[s.M.Agent.Contract.Version].Etc[file]
		if own, changed := ours[file]; changed {
			text, there = own, own != Gone
		}
		if there {
			files[file] = []byte(text)
		}
	}
	return files, nil
}

func (s Store) GiveBack(system, _ string) error {
	if _, there := s.files()[upper.Directory+"/"+system+".links"]; there {
		s.M.op("root give back " + system)
		delete(s.files(), upper.Directory+"/"+system+".links")
		s.M.durable++
	}
	return nil
}

// TryPeople implements hw.Store.
func (s Store) TryPeople(ctx context.Context, c upper.Carry) error {
	_, err := s.planPeople(ctx, c)
	return err
}

// planPeople refuses what the real store does: that a program of the image runs as somebody
// else.
func (s Store) planPeople(ctx context.Context, c upper.Carry) (*etcmerge.Result, error) {
	plan, err := etcmerge.PlanPeople(ctx, memTree(s.M.Releases[s.M.Agent.Contract.Version].Etc), c.People, c.Options)
	if err != nil {
		return nil, err
	}
	for program, number := range s.M.Programs {
		if to, moves := plan.Users[number]; moves && to != number {
			return nil, fmt.Errorf("%s runs as its user, which is somebody else here", program)
		}
	}
	return plan, nil
}

// Carry keeps what the real merge plans.
func (s Store) Carry(ctx context.Context, c upper.Carry) (*upper.Report, error) {
	s.M.op("root carry")
	if s.M.FullFile == upper.Directory {
		return nil, fmt.Errorf("/etc: make passwd: %w", syscall.ENOSPC)
	}
	s.M.Carried = append(s.M.Carried, c)
	c.Options.Masked = c.From.Unnamed // as upper.Store.Carry has it
	report, plan := new(upper.Report), new(etcmerge.Result)
	image := memTree(s.M.Releases[s.M.Agent.Contract.Version].Etc)
	ours := s.below(c.From.Upper("etc"))
	if c.From.System != "" || c.From.Unnamed {
		var base etcmerge.Tree
		switch {
		case c.Base == c.Image:
			base = image
		case c.Base != "":
			base = memTree(s.M.editionOf(*s.M.before).Etc)
		}
		var err error
		if plan, err = etcmerge.Plan(ctx, base, image, ours, c.Options); err != nil {
			return nil, err
		}
	}
	if c.From.System == "" && !c.From.Unnamed && len(c.People) > 0 {
		var err error
		if plan, err = s.planPeople(ctx, c); err != nil {
			return nil, err
		}
	}
	top, work := upper.Overlay(c.System, "etc")
	s.files()[work+"/made"] = nil
	s.files()[upper.Directory+"/"+c.System+"/"+upper.Mark] = []byte(c.Mark)
	for _, change := range plan.Changes {
		at := path.Join(top, change.Path)
		switch {
		case change.Entry.Type == etcmerge.Whiteout:
			s.files()[at] = []byte(Gone)
		case change.From == etcmerge.FromContent:
			s.files()[at] = change.Content
		case change.From == etcmerge.FromUpper:
			s.files()[at] = []byte(ours[change.Path])
		}
	}
	report.Conflicts = plan.Conflicts
	s.M.durable++
	return report, nil
}

func (m *Machine) editionOf(root verity.Root) *Edition {
	for _, r := range m.Releases {
		if r.Contract.Root() == root {
			return r
		}
	}
	m.T.Fatalf("no release has the root hash %s", root)
	return nil
}

// disk is the simulated root partition with its subvolumes.
func (s Store) disk() snapshottest.Disk {
	room := s.M.Room
	if room == (snapshot.Room{}) {
		room = snapshot.Room{Size: 100 << 30, Free: 50 << 30}
	}
	return snapshottest.Disk{Files: s.files(), Space: room, Step: func(what string) { s.M.op("root " + what); s.M.durable++ }, Fails: func(what string) error {
		if s.M.FullFile != "" && strings.HasPrefix(what, s.M.FullFile) {
			return syscall.ENOSPC
		}
		return nil
	}}
}

func (s Store) Look(name string) (subvolume.Kind, error) { return s.disk().Look(name) }

func (s Store) Snapshot(from, to string, readOnly bool) error {
	return s.disk().Snapshot(from, to, readOnly)
}

func (s Store) RemoveSubvolume(name string) error { return s.disk().RemoveSubvolume(name) }

func (s Store) Rename(from, to string) error { return s.disk().Rename(from, to) }

func (s Store) Room() (snapshot.Room, error) { return s.disk().Room() }

func (s Store) AwaitRoom(enough func(snapshot.Room) bool) (snapshot.Room, error) {
	return s.disk().AwaitRoom(enough)
}

func (s Store) Release(name string) (subvolume.Hold, error) { return s.disk().Release(name) }

func (s Store) Hold(name string, h subvolume.Hold) error { return s.disk().Hold(name, h) }

// OnBtrfs is a release whose root partition is a btrfs.
func OnBtrfs(c *contract.Contract) {
	Pinned(c)
	c.RootFileSystem = "btrfs"
}

// DB is a directory that the systems share, on btrfs.
const DB = "bind/var/lib/db"

// Migrated is a machine on btrfs whose version 2 has changed what is in /var and /root.
func Migrated(t *testing.T) *Machine {
	t.Helper()
	m := New(t, OnBtrfs)
	for _, name := range []string{"root", "usr/local"} {
		m.Must(os.MkdirAll(filepath.Join(m.Root, "sysroot", name), 0o755))
	}
	m.Ends("system")
	m.Ends("system")
	m.WritesState("one")
	m.Fetch(NewRelease(t, 2, 5, OnBtrfs))
	m.Runs(2)
	m.WritesState("two")
	return m
}

// WritesState is what the running system writes into the directories that the systems share.
func (m *Machine) WritesState(text string) {
	for _, name := range []string{DB, "bind/root/x", "bind/home/me"} {
		m.RootFiles()[name] = []byte(text)
	}
}

// GivesUp is what `ota rollback` does to version 2, which has this name.
func (m *Machine) GivesUp(name, spent string) {
	m.Rename(name, spent)
	m.Write(journal.Entry{Kind: journal.Rollback, Version: 2})
}

// AsksBack leaves the note that `ota rollback --state` leaves.
func (m *Machine) AsksBack(system contract.Version, undo bool) {
	m.T.Helper()
	n := snapshot.Note{System: m.Releases[system].Contract.Root().String(), Version: system, Undo: undo, From: 2}
	if undo {
		a, err := snapshot.ReadAside(Store{m})
		m.Must(err)
		n.Of = a.Time
	} else {
		r, err := snapshot.ReadRecord(Store{m})
		m.Must(err)
		n.Of = r.Taken
	}
	text, err := n.Encode()
	m.Must(err)
	m.RootFiles()[ownstate.RestoreNote] = text
}

// JournalHas looks for an entry.
func (m *Machine) JournalHas(kind journal.Kind, reason string) bool {
	for _, e := range journal.Parse(m.RootFiles()[bootjournal.File]) {
		if e.Kind == kind && strings.Contains(e.Reason, reason) {
			return true
		}
	}
	return false
}

// Has reports whether there is a file whose name begins so.
func (s Store) Has(prefix string) bool {
	for name := range s.files() {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
