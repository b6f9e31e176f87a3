package agent

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/upper"
)

// gone is how the simulated root partition keeps a whiteout.
const gone = "\x00gone"

// memTree is a directory in memory: its files by their paths. It implements
// etcmerge.Tree.
type memTree map[string]string

func (t memTree) Entry(name string) (etcmerge.Entry, error) {
	text, there := t[name]
	switch {
	case text == gone && there:
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
func (s store) below(directory string) memTree {
	out := memTree{}
	for name, text := range s.files() {
		if own, ok := strings.CutPrefix(name, directory+"/"); ok {
			out[own] = string(text)
		}
	}
	return out
}

func (s store) Names(name string) ([]string, error) {
	if s.m.unreadableFile == name {
		return nil, syscall.EIO
	}
	return s.below(name).Names(".")
}

func (s store) Discard(name string) error {
	if len(s.below(name)) == 0 {
		return nil
	}
	s.m.op("root discard " + name)
	if name == s.m.stuckFile {
		return syscall.EIO
	}
	maps.DeleteFunc(s.files(), func(have string, _ []byte) bool { return strings.HasPrefix(have, name+"/") })
	s.m.durable++
	return nil
}

// ClearBut takes the names of what goes one after the other.
func (s store) ClearBut(keep func(name string) bool) (stays []string, err error) {
	gone := map[string]bool{}
	for name := range s.files() {
		top, below, _ := strings.Cut(name, "/")
		if top == upper.Bind {
			own, _, _ := strings.Cut(below, "/")
			top = path.Join(upper.Bind, own)
		}
		if !keep(top) {
			gone[top] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		s.m.op("root clear " + name)
		if name == s.m.stuckFile {
			return nil, fmt.Errorf("remove %s: %w", name, syscall.EIO)
		}
		maps.DeleteFunc(s.files(), func(have string, _ []byte) bool { return have == name || strings.HasPrefix(have, name+"/") })
		s.m.durable++
	}
	return s.m.stays, nil
}

func (s store) Accounts(from upper.Source, _ string) (map[string][]byte, error) {
	files, ours := map[string][]byte{}, s.below(from.Upper("etc"))
	for _, file := range etcmerge.AccountFiles() {
		text, there := s.m.releases[s.m.agent.Contract.Version].etc[file]
		if own, changed := ours[file]; changed {
			text, there = own, own != gone
		}
		if there {
			files[file] = []byte(text)
		}
	}
	return files, nil
}

func (s store) GiveBack(system, _ string) error {
	if _, there := s.files()[upper.Directory+"/"+system+".links"]; there {
		s.m.op("root give back " + system)
		delete(s.files(), upper.Directory+"/"+system+".links")
		s.m.durable++
	}
	return nil
}

// Carry keeps what the real merge plans.
func (s store) Carry(ctx context.Context, c upper.Carry) (*upper.Report, error) {
	s.m.op("root carry")
	if s.m.fullFile == upper.Directory {
		return nil, fmt.Errorf("/etc: make passwd: %w", syscall.ENOSPC)
	}
	s.m.carried = append(s.m.carried, c)
	c.Options.Masked = c.From.Unnamed // as upper.Store.Carry has it
	report, plan := new(upper.Report), new(etcmerge.Result)
	image := memTree(s.m.releases[s.m.agent.Contract.Version].etc)
	ours := s.below(c.From.Upper("etc"))
	if c.From.System != "" || c.From.Unnamed {
		var base etcmerge.Tree
		switch {
		case c.Base == c.Image:
			base = image
		case c.Base != "":
			base = memTree(s.m.editionOf(*s.m.before).etc)
		}
		var err error
		if plan, err = etcmerge.Plan(ctx, base, image, ours, c.Options); err != nil {
			return nil, err
		}
	}
	if c.From.System == "" && !c.From.Unnamed && len(c.People) > 0 {
		var err error
		if plan, err = etcmerge.PlanPeople(ctx, image, c.People, c.Options); err != nil {
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
			s.files()[at] = []byte(gone)
		case change.From == etcmerge.FromContent:
			s.files()[at] = change.Content
		case change.From == etcmerge.FromUpper:
			s.files()[at] = []byte(ours[change.Path])
		}
	}
	report.Conflicts = plan.Conflicts
	s.m.durable++
	return report, nil
}

func (m *machine) editionOf(root verity.Root) *edition {
	for _, r := range m.releases {
		if r.contract.Root() == root {
			return r
		}
	}
	m.t.Fatalf("no release has the root hash %s", root)
	return nil
}
