package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// Redacted is a server's address without a password. A path stays as it is.
func Redacted(address string) string {
	if !strings.Contains(address, "://") {
		return address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "(an address that cannot be read)"
	}
	u.User = nil
	return u.String()
}

// entriesShown is how many of the journal's last entries a Status has.
const entriesShown = 10

// A Status is what there is to know about this machine's systems.
type Status struct {
	ImageID string             `json:"image_id"`
	Arch    string             `json:"arch"`
	Version contract.Version   `json:"version"`
	Epoch   uint64             `json:"epoch"`
	Slot    layout.Slot        `json:"slot"`
	Trial   bool               `json:"trial"`
	Console bool               `json:"console,omitempty"` // of recovery: no system runs
	Signed  bool               `json:"signed_updates"`
	Corrupt bool               `json:"corrupt"` // dm-verity has seen a block that is
	Systems []inventory.System `json:"systems"` // the one that starts next comes first
	Staged  *statefiles.Staged `json:"staged,omitempty"`
	// Fetching is the version that is partly in the other slot; 0 is none.
	Fetching contract.Version `json:"fetching,omitempty"`
	// Waits says why this is no time to fetch; "" where it is one.
	Waits   string                      `json:"waits,omitempty"`
	Failed  map[contract.Version]string `json:"failed,omitempty"`
	Channel manifest.Channel            `json:"channel"`
	Server  string                      `json:"server"`
	Journal []journal.Entry             `json:"journal"`
	// Health is what this start's health check has found; nil before it has ended.
	Health *Health `json:"health,omitempty"`
	// Conflicts are files that were changed both here and by an update; the version that
	// runs has this machine's until somebody decides.
	Conflicts []string `json:"conflicts,omitempty"`
	// LeftOut is what an update could not carry over, or found not to be as it should.
	LeftOut  []string `json:"left_out,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Snapshot is of what directories held before the last update was tried, Aside what
	// going back to it has taken out of its place; nil where there is none (btrfs).
	Snapshot *snapshot.Record `json:"snapshot,omitempty"`
	Aside    *snapshot.Aside  `json:"set_aside,omitempty"`
	// GoesBack: the next start puts directories back.
	GoesBack bool `json:"goes_back,omitempty"`
	// Grown is whether larger slots are asked for, or what came of that; nil for neither.
	Grown *Grown `json:"grown,omitempty"`
	// Left is what going back had set aside before the last update, and what holds
	// subvolumes of others.
	Left []string `json:"left,omitempty"`
}

// Status gathers it. What cannot be found out becomes a warning.
func (m *Machine) Status(ctx context.Context) (*Status, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	c := r.Contract
	s := &Status{ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch, Slot: r.Slot, Console: r.Console, Signed: len(c.ReleaseKey) > 0, Channel: manifest.Stable}
	warn := func(what string, err error) {
		if text := fmt.Sprint(what, err); err != nil && !slices.Contains(s.Warnings, text) {
			s.Warnings = append(s.Warnings, text)
		}
	}
	if !s.Signed {
		s.Warnings = append(s.Warnings, "this image takes unsigned updates (ReleaseKey=none): anyone who can write to its server or stands in between owns this machine")
	}
	inv, err := inventory.Take(m.Hardware)
	warn("what is in the slots: ", err)
	if err == nil {
		s.Systems = inv.Systems
		s.Trial, err = m.onTrial(r, inv)
		warn("", err)
	}
	s.Corrupt, err = m.Corrupt()
	if !errors.Is(err, ErrNotOpen) {
		warn("dm-verity's view of the running system: ", err)
	}
	if s.Corrupt {
		s.Warnings = append(s.Warnings, "a block of the running system is corrupt: `verify "+r.Slot.String()+"` says which; restart into recovery to repair it, or install a newer release")
	}
	set, err := m.Settings()
	warn("", err)
	if err == nil {
		s.Channel, s.Server = set.Channel, Redacted(set.Server)
	}
	if u := new(unfit); !s.Console && s.Server != "" && errors.As(m.fit(ctx, Options{}, false), &u) {
		s.Waits = u.reason
	}
	warn("", m.stateStatus(r, s))
	if text := m.keyWarning(r); text != "" {
		s.Warnings = append(s.Warnings, text)
	}
	if !r.Console {
		s.Health, err = m.lastHealth(r)
		warn("what the health check has found: ", err)
		waiting, err := m.Waiting()
		s.Conflicts, s.LeftOut = waiting.Conflicts, waiting.LeftOut
		warn("what an update has left to be decided: ", err)
	}
	return s, nil
}

// stateStatus adds what the state directory has.
func (m *Machine) stateStatus(r *Running, s *Status) error {
	if err := m.haveState(r); err != nil {
		return err
	}
	entries, err := bootinfo.ReadJournal(m.state(r))
	if err != nil {
		return err
	}
	s.Failed = failures(entries)
	s.Journal = entries[max(0, len(entries)-entriesShown):]
	if s.Staged, err = m.staged(r); err != nil {
		return err
	}
	s.Fetching = m.partly(r, s)
	if s.Grown, err = m.grown(r); err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	if r.Contract.RootFileSystem != "btrfs" {
		return nil
	}
	if s.Snapshot, err = snapshot.ReadRecord(m.Snapshots); err != nil {
		return err
	}
	if s.Aside, err = snapshot.ReadAside(m.Snapshots); err != nil {
		return err
	}
	if s.Left, err = m.Snapshots.Names(snapshot.Left); err != nil {
		return err
	}
	s.GoesBack, err = m.goesBack(r)
	return err
}

// partly finds the release that an interrupted fetch has left.
func (m *Machine) partly(r *Running, s *Status) contract.Version {
	if s.Staged != nil {
		return 0
	}
	for _, v := range m.fetchDirectories(r) {
		installed := slices.ContainsFunc(s.Systems, func(have inventory.System) bool {
			n, err := bls.Parse(have.File)
			return err == nil && n.Version == v
		})
		_, failed := s.Failed[v]                                               // or given up: it is not fetched any more
		checked := measured(m.state(r, fetchDirectory, v.String()+workEnding)) // and nothing else
		if v > r.Contract.Version && !installed && !failed && !checked {
			return v
		}
	}
	return 0
}

// SetChannel makes the machine follow another channel.
func (m *Machine) SetChannel(c manifest.Channel) error {
	return m.changeOwner(func(old []byte) ([]byte, error) { return settings.SetChannel(old, c) })
}

// changeOwner changes the owner's settings.
func (m *Machine) changeOwner(change func(old []byte) ([]byte, error)) error {
	path, err := m.ownerFile()
	if err != nil {
		return err
	}
	old, err := readOwner(path)
	if err != nil {
		return err
	}
	text, err := change(old)
	if err != nil {
		return err
	}
	// A proxy's password may stand there: who may not read it now may not read it afterwards.
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode &= info.Mode()
	}
	return hw.KeepFile(path, text, mode)
}

// keyWarning says what is to be done about the recovery key; "" for nothing. A note that
// cannot be read has nothing to say, as for the boot.
func (m *Machine) keyWarning(r *Running) string {
	f, err := os.Open(m.state(r, keynote.Name))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, keynote.MaxSize+1))
	if err != nil {
		return ""
	}
	n, err := keynote.Parse(text)
	if err != nil {
		return ""
	}
	return n.Warning(m.Now())
}
