package machine

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
)

// A Blessing says what Bless did.
type Blessing struct {
	Version contract.Version `json:"version"`
	Slot    layout.Slot      `json:"slot"`
	Already bool             `json:"already"` // it was not a trial
	// Warning is what went wrong without harm to the blessing.
	Warning string `json:"warning,omitempty"`
}

// Bless keeps the running system: its UKI loses its counter. A system that is no
// trial stays as it is, and nothing is written but a note that is missing.
//
// Before that a note says that the system's own state counts (upper.Note). Cut between the
// two, the system is on trial still: it goes on with what it has changed, and should it
// fail, the boot sees by its counter that it was never blessed. In the other order it
// could run for months and lose all that it has changed when another system starts.
func (m *Machine) Bless() (*Blessing, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	b := &Blessing{Version: r.Contract.Version, Slot: r.Slot}
	files := r.runningFiles(names(inv))
	if len(files) == 0 {
		return nil, fmt.Errorf("the EFI system partition has no boot file (UKI) of version %s, which runs: restart, which writes it again", r.Contract.Version)
	}
	var warnings []string
	if err := m.noteBlessed(r); err != nil {
		warnings = append(warnings, fmt.Sprintf("should another version start next, what this one has changed in /etc is lost: %v; then run `ota bless` again", err))
	}
	if len(files) == 1 && !files[0].Counted {
		b.Already, b.Warning = true, strings.Join(warnings, "; ")
		return b, nil
	}
	if err := m.writeESP(func(dir hw.ESPDir) error { return r.bless(dir) }); err != nil {
		return nil, fmt.Errorf("bless version %s: %w", r.Contract.Version, errors.Join(err, m.withdrawNote(r)))
	}
	// Cut here the system is blessed, and the journal does not say when.
	if err := m.note(r, journal.Entry{Kind: journal.Blessed, Version: b.Version, Slot: b.Slot}); err != nil {
		warnings = append(warnings, fmt.Sprintf("the journal does not tell of it: %v", err))
	} else if err := m.blessedHealth(r); err != nil {
		warnings = append(warnings, fmt.Sprintf("what failed at this start is not kept for the next update: %v", err))
	}
	b.Warning = strings.Join(warnings, "; ")
	return b, nil
}

// noteBlessed notes that the running system's own state counts, where that is not noted.
func (m *Machine) noteBlessed(r *Running) error {
	name, text := m.state(r, upper.Note), []byte(r.Contract.Root().String()+"\n")
	if have, err := readSmall(name, maxFile); err == nil && bytes.Equal(have, text) {
		return nil
	}
	return hw.Full(hw.KeepFile(name, text, 0o600))
}

// withdrawNote takes the note away of a system that could not be blessed: should it fail,
// what it has changed is not to count. Where the ESP does not say that it is on trial
// still, the note stays.
func (m *Machine) withdrawNote(r *Running) error {
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil
	}
	if trial, err := m.onTrial(r, inv); err != nil || !trial {
		return nil
	}
	return hw.RemoveFile(m.state(r, upper.Note))
}

// system is Running for what has no meaning at the recovery console.
func (m *Machine) system() (*Running, error) {
	r, err := m.Running()
	if err == nil && r.Console {
		err = errors.New("this is the recovery console, and no system runs: `exit` starts one, which says itself whether it is healthy")
	}
	return r, err
}

// writeESP mounts the ESP of the disk that this system was started from.
func (m *Machine) writeESP(write func(dir hw.ESPDir) error) error {
	d, err := bootdisk.Disk(m.Hardware.Disks, m.Hardware.Firmware)
	if err != nil {
		return err
	}
	return m.Hardware.ESP.Write(d, write)
}

// bless takes the counter out of the running UKI's name. Where the name without
// it is taken by the same file, which a boot manager that was cut may leave, the
// one with the counter goes.
func (r *Running) bless(dir hw.ESPDir) error {
	list, err := esp.List(dir)
	if err != nil {
		return err
	}
	var all []bls.Name
	for _, f := range list {
		all = append(all, f.Name)
	}
	var blessed, counted []bls.Name
	for _, n := range r.runningFiles(all) {
		if n.Counted {
			counted = append(counted, n)
		} else {
			blessed = append(blessed, n)
		}
	}
	if len(blessed) == 0 && len(counted) > 0 {
		if err := esp.Bless(dir, counted[0]); err != nil {
			return err
		}
		blessed, counted = []bls.Name{counted[0].Blessed()}, counted[1:]
	}
	for _, n := range counted {
		if err := removeCopy(dir, blessed[0], n); err != nil {
			return err
		}
	}
	return nil
}

// removeCopy removes a UKI that is the same as another one.
func removeCopy(dir hw.ESPDir, keep, remove bls.Name) error {
	a, err := dir.Read(esp.Path(keep))
	if err != nil {
		return err
	}
	b, err := dir.Read(esp.Path(remove))
	if err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("%s and %s are not the same: remove the one that does not belong there", keep, remove)
	}
	return esp.Remove(dir, remove)
}

// Unhealthy notes that a check of the running system has failed. The next boots
// decide by it; nothing is restarted.
func (m *Machine) Unhealthy(reason string) (*Running, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	trial, err := m.onTrial(r, inv)
	if err != nil {
		return nil, err
	}
	return r, m.note(r, journal.Entry{Kind: journal.Unhealthy, Version: r.Contract.Version, Slot: r.Slot, Trial: trial, Reason: reason})
}

// A Rollback says what GiveUp did.
type Rollback struct {
	Given   contract.Version `json:"given_up"`
	Next    contract.Version `json:"next"`    // that the next boot starts
	Restart bool             `json:"restart"` // for that to happen
	Trial   bool             `json:"trial"`   // the running system, which is given up, was never blessed
	// Stay: directories were to go back at the next start, and stay as they are.
	Stay    bool   `json:"directories_stay,omitempty"`
	Warning string `json:"warning,omitempty"`
}

// GiveUp gives up what was installed last: a release that waits to be staged, a
// trial that has not begun, or the running system, where another one can start.
func (m *Machine) GiveUp(reason string) (*Rollback, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	lock, err := m.lock(r)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	g, err := m.planGivingUp(r, inv)
	if err != nil {
		return nil, err
	}
	// Directories were to go back on an occasion that is over, or by anyone who wants them to
	// stay now. First: the next boot may be the one that the request is for.
	stay, err := m.withdrawState(r)
	if err != nil {
		return nil, err
	}
	out, err := m.giveUp(r, g, reason)
	if err != nil && stay {
		err = fmt.Errorf("%w; the directories that were to go back at the next start stay as they are: ask for that again (`ota rollback --state`)", err)
	}
	if out != nil {
		out.Stay = stay
	}
	return out, err
}

// A giving is what is given up, before it is.
type giving struct {
	Rollback
	slot layout.Slot
	next snapshot.System
	// staged: it waits to be staged, and its slot is what its fetch has made of it.
	staged bool
	// names are those of UKIs whose tries go.
	names []bls.Name
}

func (m *Machine) giveUp(r *Running, g *giving, reason string) (*Rollback, error) {
	out := g.Rollback
	if g.Restart && !g.Trial {
		// It may run since its bless without a restart, and the note of that may be missing:
		// without it the other system removes what was changed under this one.
		if err := m.noteBlessed(r); err != nil {
			return nil, fmt.Errorf("version %s is not given up, since it cannot be noted that what was changed in /etc under it is to be kept: %w", g.Given, err)
		}
	}
	if g.staged {
		// Cut after staged.json, what is left of it is the next fetch's to remove.
		if err := hw.RemoveFile(m.state(r, stagedFile)); err != nil {
			return nil, err
		}
		if err := m.forget(r, g.Given); err != nil {
			out.Warning = fmt.Sprintf("what was fetched of it could not be removed: %v", err)
		}
	} else if err := m.condemn(g.names...); err != nil {
		return nil, err
	}
	// Cut here it is given up, and the boot finds its own words for it.
	e := journal.Entry{Kind: journal.Rollback, Version: g.Given, Slot: g.slot, Trial: g.onTrial(), Reason: reason}
	if err := m.note(r, e); err != nil {
		out.Warning = fmt.Sprintf("the journal does not tell of it: %v", err)
	}
	return &out, nil
}

// onTrial reports whether what is given up was never blessed, and is in its slot.
func (g *giving) onTrial() bool { return g.Trial || !g.staged && !g.Restart }

// planGivingUp says what would be given up. It writes nothing.
func (m *Machine) planGivingUp(r *Running, inv *inventory.Inventory) (*giving, error) {
	staged, err := m.staged(r)
	if err != nil {
		return nil, err
	}
	runs := r.asSystem()
	if staged != nil {
		return &giving{Rollback: Rollback{Given: staged.Version, Next: runs.Version}, slot: staged.Slot, next: runs, staged: true}, nil
	}
	trial, err := m.onTrial(r, inv)
	if err != nil {
		return nil, err
	}
	other, name, err := other(r, inv)
	if err != nil {
		return nil, err
	}
	if !trial && name.Trial() {
		return &giving{Rollback: Rollback{Given: other.Contract.Version, Next: runs.Version}, slot: other.Slot, next: runs, names: []bls.Name{name}}, nil
	}
	switch {
	case other.Problem != "":
		err = fmt.Errorf("the other system, version %s, cannot start: %s; `ota fetch` writes a newer one in its place", other.Version, other.Problem)
	case name.Bad():
		err = fmt.Errorf("the other system, version %s, has no tries left, since it has failed itself: `ota fetch` writes a newer one in its place", other.Version)
	case other.Epoch < r.Contract.Epoch && !trial:
		err = fmt.Errorf("the other system, version %s, was replaced for good (its epoch is %d, this machine's floor is %d), so that its keys stay locked: `ota fetch` writes a newer one in its place", other.Version, other.Epoch, r.Contract.Epoch)
	}
	if err != nil {
		return nil, err
	}
	next := snapshot.System{Version: other.Contract.Version, Slot: other.Slot, Root: other.Contract.Root().String()}
	return &giving{
		Rollback: Rollback{Given: runs.Version, Next: next.Version, Restart: true, Trial: trial},
		slot:     r.Slot, next: next, names: r.runningFiles(names(inv)),
	}, nil
}

// asSystem names the running system.
func (r *Running) asSystem() snapshot.System {
	return snapshot.System{Version: r.Contract.Version, Slot: r.Slot, Root: r.Contract.Root().String()}
}

// forget removes what was fetched of a version.
func (m *Machine) forget(r *Running, v contract.Version) error {
	directory := m.state(r, fetchDirectory, v.String())
	return errors.Join(os.RemoveAll(directory), os.RemoveAll(directory+workEnding))
}

// Retry takes a version off the list of those that are not tried again.
func (m *Machine) Retry(v contract.Version, reason string) error {
	r, err := m.Running()
	if err != nil {
		return err
	}
	lock, err := m.lock(r)
	if err != nil {
		return err
	}
	defer lock.Close()
	entries, err := bootinfo.ReadJournal(m.state(r))
	if err != nil {
		return fmt.Errorf("read the boot journal: %w", err)
	}
	listed := failures(entries)
	if _, ok := listed[v]; !ok {
		return fmt.Errorf("version %s is not on the list of those that are not tried again (it has %s): `ota status` shows it", v, versions(listed))
	}
	return m.note(r, journal.Entry{Kind: journal.Forgiven, Version: v, Reason: reason})
}

// versions names them, for people.
func versions(listed map[contract.Version]string) string {
	if len(listed) == 0 {
		return "none"
	}
	var all []string
	for _, v := range slices.Sorted(maps.Keys(listed)) {
		all = append(all, v.String())
	}
	return strings.Join(all, ", ")
}

// other returns the system in the other slot and its name.
func other(r *Running, inv *inventory.Inventory) (inventory.System, bls.Name, error) {
	for _, s := range inv.Systems {
		if s.Slot != r.Slot.Other() || s.Contract == nil {
			continue
		}
		n, err := bls.Parse(s.File)
		return s, n, err
	}
	return inventory.System{}, bls.Name{}, fmt.Errorf("there is no other system to go back to: slot %s is empty (`ota fetch` fills it, where there is a newer release)", r.Slot.Other())
}

// condemn takes the tries of UKIs away.
func (m *Machine) condemn(names ...bls.Name) error {
	return m.writeESP(func(dir hw.ESPDir) error {
		for _, n := range names {
			if err := esp.Condemn(dir, n); err != nil {
				return err
			}
		}
		return nil
	})
}
