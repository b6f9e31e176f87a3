// Package snapshottest is a root partition in memory that has subvolumes, for tests.
package snapshottest

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"

	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/subvolume"
)

// What a subvolume's own name holds in Files.
const (
	Writable = "\x00subvolume"
	ReadOnly = "\x00read-only subvolume"
)

// A Disk is the root partition. Nothing of it is lost once a method has returned.
type Disk struct {
	Files map[string][]byte // by their paths; a directory is there when something is below it
	Space snapshot.Room
	// Step is called before each change.
	Step func(what string)
	// Fails is asked for the error of a change; nil for none.
	Fails func(what string) error
}

func (d Disk) step(what string) error {
	if d.Step != nil {
		d.Step(what)
	}
	if d.Fails != nil {
		return d.Fails(what)
	}
	return nil
}

func (d Disk) below(name string) map[string][]byte {
	out := map[string][]byte{}
	for at, content := range d.Files {
		if own, ok := strings.CutPrefix(at, name+"/"); ok {
			out[own] = content
		}
	}
	return out
}

func isSubvolume(content []byte) bool {
	return string(content) == Writable || string(content) == ReadOnly
}

// Look implements snapshot.Subvolumes.
func (d Disk) Look(name string) (subvolume.Kind, error) {
	content, there := d.Files[name]
	switch {
	case isSubvolume(content):
		return subvolume.Subvolume, nil
	case there || len(d.below(name)) > 0:
		return subvolume.Directory, nil
	}
	return subvolume.Absent, nil
}

// Snapshot implements snapshot.Subvolumes. Of a subvolume within there is an empty
// directory.
func (d Disk) Snapshot(from, to string, readOnly bool) error {
	if err := d.step("snapshot " + from + " as " + to); err != nil {
		return err
	}
	if kind, _ := d.Look(from); kind != subvolume.Subvolume {
		return fmt.Errorf("snapshot of %s: %w", from, syscall.EINVAL)
	}
	if kind, _ := d.Look(to); kind != subvolume.Absent {
		return fmt.Errorf("snapshot %s: %w", to, fs.ErrExist)
	}
	content := d.below(from)
	for name, is := range maps.Clone(content) {
		if isSubvolume(is) {
			content[name] = []byte{}
			maps.DeleteFunc(content, func(n string, _ []byte) bool { return strings.HasPrefix(n, name+"/") })
		}
	}
	d.Files[to] = []byte(Writable)
	if readOnly {
		d.Files[to] = []byte(ReadOnly)
	}
	for name, is := range content {
		d.Files[to+"/"+name] = slices.Clone(is)
	}
	return nil
}

// RemoveSubvolume implements snapshot.Subvolumes.
func (d Disk) RemoveSubvolume(name string) error {
	for _, content := range d.below(name) {
		if isSubvolume(content) {
			return fmt.Errorf("remove %s: %w", name, subvolume.ErrNested)
		}
	}
	if err := d.step("remove subvolume " + name); err != nil {
		return err
	}
	if kind, _ := d.Look(name); kind != subvolume.Subvolume {
		return fmt.Errorf("remove %s: %w", name, syscall.ENOTDIR)
	}
	d.discard(name)
	return nil
}

func (d Disk) discard(name string) {
	maps.DeleteFunc(d.Files, func(at string, _ []byte) bool { return at == name || strings.HasPrefix(at, name+"/") })
}

// Rename implements snapshot.Subvolumes.
func (d Disk) Rename(from, to string) error {
	if err := d.step("rename " + from + " to " + to); err != nil {
		return err
	}
	if kind, _ := d.Look(to); kind != subvolume.Absent {
		return fmt.Errorf("rename %s to %s: %w", from, to, fs.ErrExist)
	}
	content, own := d.below(from), d.Files[from]
	if len(content) == 0 && own == nil {
		return fmt.Errorf("rename %s: %w", from, fs.ErrNotExist)
	}
	d.discard(from)
	if own != nil {
		d.Files[to] = own
	}
	for name, is := range content {
		d.Files[to+"/"+name] = is
	}
	return nil
}

// Room implements snapshot.Subvolumes.
func (d Disk) Room() (snapshot.Room, error) { return d.Space, nil }

// Read is snapshot.Store's, as are the methods below.
func (d Disk) Read(name string, limit int64) ([]byte, error) {
	content, there := d.Files[name]
	if !there {
		return nil, fs.ErrNotExist
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has %d bytes", name, len(content))
	}
	return slices.Clone(content), nil
}

func (d Disk) Keep(name string, content []byte) error {
	err := d.step("keep " + name)
	if err == nil {
		d.Files[name] = slices.Clone(content)
	}
	return err
}

func (d Disk) Remove(name string) error {
	if _, there := d.Files[name]; !there {
		return nil
	}
	err := d.step("remove " + name)
	if err == nil {
		delete(d.Files, name)
	}
	return err
}

func (d Disk) MakeDirectory(string, fs.FileMode) error { return nil }

func (d Disk) Names(name string) ([]string, error) {
	var names []string
	for at := range d.below(name) {
		first, _, _ := strings.Cut(at, "/")
		names = append(names, first)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (d Disk) Discard(name string) error {
	err := d.step("discard " + name)
	if err == nil {
		d.discard(name)
	}
	return err
}
