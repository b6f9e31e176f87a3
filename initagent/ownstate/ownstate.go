// Package ownstate sees to what may change of a system, of which each has its own on the
// root partition: made at its first start from that of the system before it, and removed
// when it is nobody's any more. How that is done is package upper's.
//
// It refuses to write to the state of another system, which is only read.
package ownstate

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

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// BlessedNote is what `ota bless` writes. MaxBlessed bounds it, and upper.Blessed, in bytes.
const (
	BlessedNote = rootpart.Shared + "/" + upper.Note
	MaxBlessed  = 4 << 10
)

// Look looks, once the root partition is open, whether this system has state of its own,
// and whether what is noted about whose state counts is older than what is so. tried is what
// this boot has done.
func Look(h *host.Host, tried bootflow.Facts) (first, unsettled bool, err error) {
	found, err := Known(h)
	if err != nil {
		return true, false, err
	}
	first = tried.Came(bootflow.CarryState) == bootflow.NotTried && (!found.Has(Own(h)) || leftState(h, found))
	unsettled = tried.Came(bootflow.SettleState) == bootflow.NotTried && h.RunsBlessed() && !first &&
		(found.Current() != Own(h) || found.Noted != "" || len(upper.Stale(found, Own(h))) > 0)
	return first, unsettled, nil
}

// Entries are the directories that the image's state.conf names.
func Entries(h *host.Host) ([]stateconf.Entry, error) {
	text, err := os.ReadFile(h.Path(host.SystemDirectory, stateconf.Path))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(stateconf.Default), nil
	}
	if err != nil {
		return nil, err
	}
	return stateconf.Parse(text)
}

// leftState reports whether this system's state is from before the system in the other
// slot ran, which is of a release that keeps one /etc for all systems. Such a release
// neither removes the state of a trial when it runs, nor that of a system when it stages it
// again.
//
// A system that was blessed and is on trial has either been staged again or its blessing
// was cut (see `ota bless`), and then its state is what it has run on.
func leftState(h *host.Host, found upper.Found) bool {
	booted, known := h.BootedName()
	if !known || !booted.Counted || !found.Unnamed || found.Has(otherSlot(h, nil).System) {
		return false
	}
	return madeForAnother(h) || !found.Proven(Own(h)) && (booted.Done <= 1 || otherRan(h))
}

// otherRan reports whether it was another version that the last start handed over to.
func otherRan(h *host.Host) bool {
	for _, e := range slices.Backward(h.Journal.Written()) {
		if e.Kind == journal.Boot {
			return e.Version != h.Contract.Version
		}
	}
	return false
}

// madeForAnother reports whether this system's state was made for an earlier staging of
// it: a first try may have been cut before it came so far.
func madeForAnother(h *host.Host) bool {
	mark, err := h.Store.Read(path.Join(upper.Of(h.Contract.Root()), upper.Mark), MaxBlessed)
	staged := lastStaged(h)
	return err == nil && staged != "" && string(mark) != staged
}

// lastStaged names the staging of this system by its entry in the boot journal; "" where
// the journal has none.
func lastStaged(h *host.Host) string {
	for _, e := range slices.Backward(h.Journal.Written()) {
		if e.Kind == journal.Staged && e.Version == h.Contract.Version {
			return e.Boot + " " + e.Time.UTC().Format(time.RFC3339)
		}
	}
	return ""
}

// Own names this system's state: by the root hash of its image.
func Own(h *host.Host) string { return h.Contract.Root().String() }

// Known is what the root partition has of the state of systems.
func Known(h *host.Host) (upper.Found, error) {
	names, err := h.Store.Names(upper.Directory)
	if err != nil {
		return upper.Found{}, fmt.Errorf("the state of the systems: %w", err)
	}
	found := upper.Found{Systems: upper.Systems(names), Linked: upper.Linked(names)}
	unnamed, err := h.Store.Names(upper.Unnamed)
	switch {
	case err != nil && (!h.RunsBlessed() || !found.Has(Own(h))): // it may be whose state counts
		return upper.Found{}, fmt.Errorf("the state of the systems: %w", err)
	case err != nil:
		h.Log.Say("what was kept for all systems cannot be read, and is not used: %v", err)
	}
	found.Unnamed = len(unnamed) > 0
	text, err := h.Store.Read(upper.Blessed, MaxBlessed)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.Log.Say("which system ran last is not known: %v", err)
	}
	found.Blessed = upper.Systems(strings.Fields(string(text)))
	note, err := h.Store.Read(BlessedNote, MaxBlessed)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.Log.Say("which system was blessed last is not known: %v", err)
	}
	found.TakeNote(note)
	if found.Noted != "" && stillOnTrial(h, found.Noted) {
		found.Noted = ""
	}
	return found, nil
}

// stillOnTrial reports whether another system's UKI says that it has used tries and was not
// blessed: its blessing was cut after the note. One that was blessed and given up has a
// counter that has counted nothing.
func stillOnTrial(h *host.Host, system string) bool {
	for _, n := range h.Names {
		if n.ImageID != h.Contract.ImageID || h.IsOurs(n) || !n.Counted || n.Done == 0 {
			continue
		}
		if b, err := lookBefore(h, n); err == nil && b.contract.Root().String() == system {
			return true
		}
	}
	return false
}

// Carry makes what is this system's own on the root partition. See
// upper.Store.Carry for what a cut leaves.
//
// Where it fails, nothing has changed: a trial is given up by its tries, and the system
// before it opens its own state, which was only read.
func Carry(ctx context.Context, h *host.Host) error {
	found, err := Known(h)
	if err != nil {
		return err
	}
	entries, err := Entries(h)
	if err != nil {
		return err
	}
	if found.Has(Own(h)) { // see leftState
		if err := forgetBlessing(h, found); err != nil {
			return fmt.Errorf("that this system was blessed before: %w", err)
		}
		// The links that it has set stay: this is to set them, too.
		if err := h.Store.Discard(path.Join(upper.Directory, Own(h))); err != nil {
			return fmt.Errorf("the state of an earlier trial of this system: %w", err)
		}
	}
	last := systemBefore(h)
	c := upper.Carry{
		System: Own(h), From: upper.Choose(found, Own(h), otherSlot(h, last)),
		Image: h.Path(host.SystemDirectory), Entries: entries,
		Options: etcmerge.Options{To: h.Contract.Version}, Mark: lastStaged(h),
		Progress: func(total int64) func(int64) { return h.Log.Progress("carrying the state over", total) },
	}
	h.Log.Say("%s", c.From)
	people, wasReset, err := keptPeople(h, c.From)
	if err != nil {
		return err
	}
	c.People = people
	if c.Base, err = openBefore(h, c.From, last); err != nil {
		h.Log.Say("the image of the system before cannot be had, so that all that its state holds counts as this machine's: %v", err)
	}
	if c.Base != "" {
		c.Options.From = last.contract.Version
	}
	if c.Base == h.Path(beforeDirectory) {
		defer closeBefore(h)
	}
	report, err := h.Store.Carry(ctx, c)
	if c.Base != "" && errors.Is(err, etcmerge.ErrBase) {
		h.Log.Say("the image of the system before is damaged, so that all that its state holds counts as this machine's: %v", err)
		c.Base, c.Options.From = "", 0
		report, err = h.Store.Carry(ctx, c)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = hw.Full(err)
		h.NoteSelf(journal.NoRoom, err.Error())
	}
	if err != nil {
		return err
	}
	reportCarry(h, report)
	if wasReset {
		return h.Store.Remove(keephome.Path) // or the next start would begin again
	}
	return nil
}

// forgetBlessing notes that this system is a trial again. It comes before the state goes:
// cut between the two, the state is made for an earlier staging still (madeForAnother), and
// all of this is done again.
func forgetBlessing(h *host.Host, found upper.Found) error {
	if !found.Proven(Own(h)) {
		return nil
	}
	others := found.Settled(Own(h))
	others = others[:len(others)-1]
	if err := h.Store.Keep(upper.Blessed, []byte(strings.Join(others, "\n")+"\n")); err != nil {
		return err
	}
	return h.Store.Remove(BlessedNote) // whom it named is in the list, or is this one
}

func reportCarry(h *host.Host, r *upper.Report) {
	if r.Kept+r.Merged+len(r.Conflicts) > 0 {
		h.Log.Say("of /etc and what is like it %d entries are this machine's own, and %d are merged; %d conflicts wait for a decision", r.Kept, r.Merged, len(r.Conflicts))
	}
	for _, n := range r.Notes {
		h.Log.Say("%s: %s", n.Path, n.Text)
	}
	for _, l := range r.LeftOut {
		h.Log.Say("WARNING: %s", l)
	}
}

// Settle notes that the state of this system, which is blessed, counts, after that
// of the one that was blessed last. The state of a trial that was not blessed goes: what
// changes from now on is merged when it starts again. Cut between the two, the next start
// of this system does the rest. What `ota bless` has noted stays, and says nothing new.
func Settle(h *host.Host) error {
	found, err := Known(h)
	if err != nil {
		return err
	}
	if found.Current() != Own(h) || found.Noted != "" {
		text := strings.Join(found.Settled(Own(h)), "\n") + "\n"
		if err := h.Store.Keep(upper.Blessed, []byte(text)); err != nil {
			return err
		}
	}
	var errs []error
	for _, s := range upper.Stale(found, Own(h)) {
		errs = append(errs, discardState(h, s))
	}
	return errors.Join(errs...)
}

// discardState removes the state of a system, and gives the links back after it that it
// has set in shared directories. Cut between the two, the list of these links is there
// still: a first start sets them again, and the next boot of this system gives them back.
// In the other order a trial whose links are back could start on the state that it has.
func discardState(h *host.Host, system string) error {
	if err := h.Store.Discard(path.Join(upper.Directory, system)); err != nil {
		return fmt.Errorf("the state of system %.16s: %w", system, err)
	}
	return h.Store.GiveBack(system, h.Path(host.SystemDirectory))
}

// Leave removes the state of all systems but this one, which is blessed and
// has its own: the slot of each of them holds another release from now on. The same
// release once more is merged again when it starts, and is a trial: that it was blessed
// in an earlier life counts no more.
//
// It comes before the new UKI has its name. Cut before or within it, this system
// starts, whose state is untouched; what is left goes the next time.
//
// Only what the release that is staged would find has to go, and it finds what has its own
// root hash: its state, and that it was blessed. Everything else that cannot be removed is
// of systems that no slot holds. None of them starts before it is staged itself, and then
// its state has to go. Until then it takes up room, and is said.
func Leave(h *host.Host, next verity.Root) error {
	found, err := Known(h)
	if err != nil {
		return err
	}
	if !found.Has(Own(h)) {
		return nil
	}
	if err := leaveBlessed(h, found); err != nil {
		if found.Proven(next.String()) {
			return err
		}
		h.Log.Say("which system ran last is not noted: %v", err)
	}
	for _, s := range upper.Leave(found, Own(h)) {
		if found.Proven(s) {
			h.Log.Say("what was changed in /etc under system %.16s goes: a release is installed in its place", s)
		}
		if err := discardState(h, s); err != nil {
			if s == next.String() {
				return err
			}
			h.Log.Say("it stays, and is not used: %v", err)
		}
	}
	if found.Unnamed {
		return leaveUnnamed(h)
	}
	return nil
}

// leaveUnnamed removes what a release before this one kept for all systems, of which this
// one has its own. No system that a slot holds opens it any more.
func leaveUnnamed(h *host.Host) error {
	entries, err := Entries(h)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Mode != stateconf.Overlay {
			continue // what this system has not taken over stays
		}
		if err := h.Store.Discard(path.Join(upper.Unnamed, upper.Name(e.Path))); err != nil {
			h.Log.Say("%s as it was kept for all systems stays, and is not used: %v", e.Path, err)
		}
	}
	return nil
}

// leaveBlessed notes that of all systems this one alone has run blessed. Cut after it, the
// state of the others is that of trials, which goes all the same. What `ota bless` has
// noted is in the list then, or is of a system whose state goes: where it cannot be
// removed, it says no more than root of this system could have said.
func leaveBlessed(h *host.Host, found upper.Found) error {
	if err := h.Store.Remove(BlessedNote); err != nil {
		h.Log.Say("what was blessed last stays noted: %v", err)
	}
	if len(found.Blessed) == 1 && found.Current() == Own(h) {
		return nil
	}
	return h.Store.Keep(upper.Blessed, []byte(Own(h)+"\n"))
}
