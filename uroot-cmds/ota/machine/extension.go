package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/uroot-cmds/ota/offer"
)

// Role says what a release is on this machine.
type Role string

// The roles.
const (
	RoleRuns  Role = "runs"
	RoleWaits Role = "waits" // the next start tries it, or it is newer than the one that runs
	RoleOlder Role = "older" // what a rollback starts
	Gone      Role = "gone"  // it was given up, or has failed, or is not whole
)

// An Extension is a system extension of one of the releases that this machine has.
type Extension struct {
	Name      string       `json:"name"`
	RootHash  contract.Hex `json:"root_hash"`
	Size      int64        `json:"size"` // of its file, in bytes
	Essential bool         `json:"essential,omitempty"`
	Enabled   bool         `json:"enabled"`
	// There: its file is on the root partition, with the right size. Begun is how many bytes
	// of it an interrupted fetch has left.
	There bool  `json:"there"`
	Begun int64 `json:"begun,omitempty"`
	// Opened: it is part of the system that runs. LeftOut is why it is not, though enabled.
	Opened  bool   `json:"opened,omitempty"`
	LeftOut string `json:"left_out,omitempty"`
}

// A Carrier is a release that this machine has, with its extensions.
type Carrier struct {
	Version    contract.Version `json:"version"`
	Role       Role             `json:"role"`
	Slot       layout.Slot      `json:"slot"`
	Extensions []Extension      `json:"extensions"`

	contract *contract.Contract
	list     []contract.Extension
}

// Extensions is what this machine has of its releases' extensions.
type Extensions struct {
	Releases []Carrier `json:"releases"` // the one that runs comes first
	// Unknown are enabled, and no release here has any of that name.
	Unknown []string `json:"unknown,omitempty"`
	// Unlisted is why not all releases could be asked; "" where they were.
	Unlisted string `json:"unlisted,omitempty"`

	choice extension.Choice
	// fallback is why files that no release here lists may be needed all the same: the boot
	// writes a UKI that is lost again. nil where they are not.
	fallback error
}

// ListExtensions says which extensions the releases here have, which are enabled, and what
// has become of them. It changes nothing.
func (m *Machine) ListExtensions() (*Extensions, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	if err := m.haveState(r); err != nil {
		return nil, err
	}
	return m.extensions(r)
}

// extensions gathers it. A choice that cannot be read is an error: it must not pass for
// none.
func (m *Machine) extensions(r *Running) (*Extensions, error) {
	choice, err := m.readChoice(r)
	if err != nil {
		return nil, err
	}
	x, err := m.carriers(r)
	if err != nil {
		return nil, err
	}
	x.choice = choice
	booted := m.booted(r)
	known := map[string]bool{}
	for i := range x.Releases {
		c := &x.Releases[i]
		c.Extensions = []Extension{}
		for _, e := range c.list {
			known[e.Name] = true
			c.Extensions = append(c.Extensions, m.extensionState(r, c.Role, e, choice, booted))
		}
		slices.SortFunc(c.Extensions, func(a, b Extension) int { return strings.Compare(a.Name, b.Name) })
	}
	for _, name := range choice.Enabled() {
		if !known[name] {
			x.Unknown = append(x.Unknown, name)
		}
	}
	return x, nil
}

func (m *Machine) extensionState(r *Running, role Role, e contract.Extension, choice extension.Choice, booted []extension.State) Extension {
	out := Extension{Name: e.Name, RootHash: e.RootHash, Essential: e.Essential, Enabled: choice.Has(e.Name), There: m.extensionThere(r, &e)}
	out.Size, _ = e.FileSize() // the list was validated
	out.Begun = m.begun(r, &e)
	if role != RoleRuns {
		return out
	}
	for _, s := range booted {
		if s.Name == e.Name && s.Root() == e.Root() {
			out.Opened, out.LeftOut = s.Opened, s.LeftOut
		}
	}
	return out
}

// readChoice reads which extensions are enabled. No file is none.
func (m *Machine) readChoice(r *Running) (extension.Choice, error) {
	name := m.state(r, extension.Directory, extension.ChoiceName)
	text, err := readSmall(name, extension.MaxChoice)
	if errors.Is(err, fs.ErrNotExist) {
		return extension.Choice{}, nil
	}
	var c extension.Choice
	if err == nil {
		c, err = extension.ParseChoice(text)
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w (%w), and it says which extensions are enabled. Nothing is changed by that: correct it, or set it aside (`mv %s %s.old`), by which none is enabled, and enable again what is wanted", name, errDamaged, err, name, name)
	}
	return c, nil
}

// booted is what this start has made of the running release's extensions; nothing where
// it does not say.
func (m *Machine) booted(r *Running) []extension.State {
	var report struct {
		Extensions []extension.State `json:"extensions"`
	}
	text, err := m.read(reportFile)
	if err != nil || r.Console || strictjson.Unmarshal(text, &report) != nil {
		return nil
	}
	return report.Extensions
}

// carriers are the releases that this machine has: those on the EFI system partition, and
// one that was fetched and waits to be staged.
func (m *Machine) carriers(r *Running) (*Extensions, error) {
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	x := new(Extensions)
	var unlisted []string
	for _, s := range inv.Systems {
		if s.Unlisted != nil {
			unlisted = append(unlisted, fmt.Sprintf("%s: %v", s.File, s.Unlisted))
		}
		if s.Contract == nil {
			continue
		}
		c := Carrier{Slot: s.Slot, contract: s.Contract, list: s.Extensions, Role: RoleOlder}
		switch n, err := bls.Parse(s.File); {
		case err != nil || n.Bad():
			c.Role = Gone
		case s.Contract.Version > r.Contract.Version:
			c.Role = RoleWaits
		}
		x.add(r, c)
	}
	if !slices.ContainsFunc(x.Releases, func(c Carrier) bool { return c.Role == RoleRuns }) {
		unlisted = append(unlisted, fmt.Sprintf("the EFI system partition has no boot file (UKI) of version %s, which runs: restart, which writes it again", r.Contract.Version))
	}
	x.fallback = m.lostFallback(r, inv)
	staged, err := m.staged(r)
	if err != nil {
		return nil, err
	}
	for _, v := range m.fetchDirectories(r) {
		c, list, err := m.fetchedExtensions(r, v)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is not fetched yet, or staged
		}
		if err != nil {
			unlisted = append(unlisted, err.Error())
			continue
		}
		role := Gone
		if staged != nil && staged.Version == v {
			role = RoleWaits
		}
		x.add(r, Carrier{Slot: r.Slot.Other(), contract: c, list: list, Role: role})
	}
	x.Unlisted = strings.Join(unlisted, "; ")
	rank := []Role{RoleRuns, RoleWaits, RoleOlder, Gone}
	slices.SortStableFunc(x.Releases, func(a, b Carrier) int {
		return cmp.Compare(slices.Index(rank, a.Role), slices.Index(rank, b.Role))
	})
	return x, nil
}

// lostFallback says whether the other slot may hold a system whose UKI is not on the EFI system
// partition: it was not emptied by a fetch, which gives its partitions new UUIDs and notes them.
func (m *Machine) lostFallback(r *Running, inv *inventory.Inventory) error {
	other := r.Slot.Other()
	if slices.ContainsFunc(inv.Systems, func(s inventory.System) bool { return s.Contract != nil && s.Slot == other }) {
		return nil
	}
	system, tree, err := inv.UUIDs(other)
	if err != nil {
		return err
	}
	var given emptied
	if _, err := decode(m.state(r, slotFile), &given); err != nil {
		return err
	}
	if given == (emptied{other, system.String(), tree.String()}) {
		return nil
	}
	return fmt.Errorf("slot %s may hold a system whose boot file (UKI) is not on the EFI system partition", other)
}

// add adds a release, once.
func (x *Extensions) add(r *Running, c Carrier) {
	c.Version = c.contract.Version
	if c.contract.Root() == r.Contract.Root() && c.Version == r.Contract.Version {
		c.Role = RoleRuns
	}
	if !slices.ContainsFunc(x.Releases, func(have Carrier) bool {
		return have.Version == c.Version && have.contract.Root() == c.contract.Root()
	}) {
		x.Releases = append(x.Releases, c)
	}
}

// fetchedExtensions reads the list of a release that was fetched, from the copy of its UKI
// which nobody but root can change, and which was compared with the signed release.json.
func (m *Machine) fetchedExtensions(r *Running, v contract.Version) (*contract.Contract, []contract.Extension, error) {
	name := m.state(r, fetchDirectory, v.String(), release.UKIFile)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	c, list, err := offer.Extensions(f)
	if err != nil {
		err = fmt.Errorf("%s: %w", filepath.Dir(name), err)
	}
	return c, list, err
}

// Endings beside an extension's file: what an interrupted fetch has of it, and the worker's
// directory.
const partEnding = ".part"

// extensionPath is where an extension's file lies, without an ending of its own: all that
// belongs to it begins with its root hash.
func (m *Machine) extensionPath(r *Running, e *contract.Extension) string {
	return m.state(r, extension.Directory, e.Root().String())
}

// begun is how many bytes on the disk an interrupted fetch has left of an extension.
func (m *Machine) begun(r *Running, e *contract.Extension) int64 {
	info, err := os.Lstat(m.extensionPath(r, e) + partEnding)
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return allocated(info)
}

// extensionFile is the file's name when it is whole.
func (m *Machine) extensionFile(r *Running, e *contract.Extension) string {
	return m.state(r, extension.Directory, extension.FileName(e.Root()))
}

// extensionThere reports whether there is a file of the right size.
func (m *Machine) extensionThere(r *Running, e *contract.Extension) bool {
	size, err := e.FileSize()
	info, serr := os.Lstat(m.extensionFile(r, e))
	return err == nil && serr == nil && info.Mode().IsRegular() && info.Size() == size
}

// sweep removes what no release here has a use for, and what was begun of the extensions
// that drop names. Cut anywhere, the next one goes on.
//
// A release counts as long as its UKI is on the EFI system partition or it is being fetched:
// so the files of both slots stay, and a rollback finds its own. Where not every UKI can be
// read, nothing is removed. Where one may be lost, whole files stay.
func (m *Machine) sweep(r *Running, x *Extensions, drop ...string) (freed int64, err error) {
	directory := m.state(r, extension.Directory)
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if x.Unlisted != "" {
		return 0, fmt.Errorf("no file is removed, since not every release can be asked which it needs: %s", x.Unlisted)
	}
	listed := map[string]string{}
	for _, c := range x.Releases {
		for _, e := range c.list {
			listed[e.Root().String()] = e.Name
		}
	}
	var kept error
	for _, entry := range entries {
		if !useless(entry.Name(), listed, drop) {
			continue
		}
		if x.fallback != nil && filepath.Ext(entry.Name()) == fileEnding {
			kept = fmt.Errorf("files of extensions stay that no release here lists, since %w: restart, which writes it again if it was lost", x.fallback)
			continue
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			freed += allocated(info)
		}
		if err := os.RemoveAll(filepath.Join(directory, entry.Name())); err != nil {
			return freed, err
		}
	}
	return freed, errors.Join(kept, hw.SyncDirectory(directory))
}

// useless reports whether a name in the extensions' directory is of a file that none of the
// listed extensions needs (their names by their root hashes), or that was begun of one of drop.
// What is not ours is not.
func useless(name string, listed map[string]string, drop []string) bool {
	root, ending, found := strings.Cut(name, ".")
	if !found || len(root) != len(extension.FileName([32]byte{}))-len(fileEnding) {
		return false
	}
	of, ours := listed[root]
	switch "." + ending {
	case fileEnding:
		return !ours
	case partEnding, workEnding:
		return !ours || slices.Contains(drop, of)
	}
	return false
}

// fileEnding is that of extension.FileName.
const fileEnding = ".raw"
