// Package snapshottest is a root partition in memory that has subvolumes, for tests.
package snapshottest

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/subvolume"
)

// What the own name of a directory holds in Files.
const (
	Writable  = "\x00subvolume"
	ReadOnly  = "\x00read-only subvolume"
	Immutable = "\x00immutable subvolume" // chattr +i
	directory = "\x00directory"           // made as such: others are there while anything is in them
)

// A Disk is the root partition. Nothing of it is lost once a method has returned.
type Disk struct {
	Files map[string][]byte // by their paths; a directory is there when something is below it
	Space snapshot.Room
	// Freeing is what removed subvolumes take still, in bytes.
	Freeing int64
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

// isDirectory reports it of what has a name of its own. A file of the tests is never empty
// where that matters.
func isDirectory(content []byte) bool {
	return len(content) == 0 || string(content) == directory || isSubvolume(content)
}

func isSubvolume(content []byte) bool {
	return slices.Contains([]string{Writable, ReadOnly, Immutable}, string(content))
}

// makes checks that something can be made with a name: its directory is there, and takes it.
func (d Disk) makes(name string) error {
	parent := path.Dir(name)
	if parent == "." {
		return nil
	}
	if kind, _ := d.Look(parent); kind == subvolume.Absent {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	for ; parent != "."; parent = path.Dir(parent) {
		switch string(d.Files[parent]) {
		case ReadOnly:
			return &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
		case Immutable:
			return &fs.PathError{Op: "open", Path: name, Err: syscall.EPERM}
		case "", directory, Writable:
		default:
			return &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
		}
	}
	return nil
}

// moves checks that a directory can leave where it is: not a read-only subvolume, and
// nothing that is immutable.
func (d Disk) moves(op, name string, away bool) error {
	switch string(d.Files[name]) {
	case Immutable:
		return &fs.PathError{Op: op, Path: name, Err: syscall.EPERM}
	case ReadOnly:
		if away {
			return &fs.PathError{Op: op, Path: name, Err: syscall.EROFS}
		}
	}
	return nil
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
	if err := d.makes(to); err != nil {
		return err
	}
	content := d.below(from)
	for name, is := range maps.Clone(content) {
		if isSubvolume(is) {
			content[name] = []byte{}
			maps.DeleteFunc(content, func(n string, _ []byte) bool { return strings.HasPrefix(n, name+"/") })
		}
	}
	d.Files[to] = []byte(Writable)
	switch {
	case string(d.Files[from]) == Immutable:
		d.Files[to] = []byte(Immutable) // a snapshot has it, too
	case readOnly:
		d.Files[to] = []byte(ReadOnly)
	}
	for name, is := range content {
		d.Files[to+"/"+name] = slices.Clone(is)
	}
	return nil
}

// Release implements snapshot.Subvolumes.
func (d Disk) Release(name string) (subvolume.Hold, error) {
	h := subvolume.Hold{ReadOnly: string(d.Files[name]) == ReadOnly}
	if string(d.Files[name]) == Immutable {
		h.Flags = immutable
	}
	if h == (subvolume.Hold{}) {
		return h, nil
	}
	if err := d.step("release " + name); err != nil {
		return h, err
	}
	d.Files[name] = []byte(Writable)
	return h, nil
}

const immutable = 0x10 // FS_IMMUTABLE_FL

// Hold implements snapshot.Subvolumes.
func (d Disk) Hold(name string, h subvolume.Hold) error {
	if h == (subvolume.Hold{}) {
		return nil
	}
	if err := d.step("hold " + name); err != nil {
		return err
	}
	d.Files[name] = []byte(ReadOnly)
	if h.Flags != 0 {
		d.Files[name] = []byte(Immutable)
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
	if err := d.moves("remove", name, false); err != nil {
		return err
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
	if err := d.makes(to); err != nil {
		return err
	}
	if err := d.moves("rename", from, path.Dir(from) != path.Dir(to)); err != nil {
		return err
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

// AwaitRoom implements snapshot.Subvolumes.
func (d Disk) AwaitRoom(enough func(snapshot.Room) bool) (snapshot.Room, error) {
	room := d.Space
	if !enough(room) {
		room.Free += d.Freeing
	}
	return room, nil
}

// Read is snapshot.Store's, as are the methods below.
func (d Disk) Read(name string, limit int64) ([]byte, error) {
	content, there := d.Files[name]
	if parent, file := d.Files[path.Dir(name)]; file && !isDirectory(parent) {
		return nil, fmt.Errorf("open %s: %w: %w", name, snapshot.ErrUnfit, syscall.ENOTDIR)
	}
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
		err = d.makes(name)
	}
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

func (d Disk) MakeDirectory(name string, _ fs.FileMode) error {
	if kind, _ := d.Look(name); kind != subvolume.Absent {
		return nil
	}
	if parent := path.Dir(name); parent != "." {
		if err := d.MakeDirectory(parent, 0); err != nil {
			return err
		}
	}
	err := d.makes(name)
	if err == nil {
		d.Files[name] = []byte(directory)
	}
	return err
}

func (d Disk) Names(name string) ([]string, error) {
	for at := name; at != "."; at = path.Dir(at) {
		if content, file := d.Files[at]; file && !isDirectory(content) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
		}
	}
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
