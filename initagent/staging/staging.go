// Package staging makes a release that the fetcher has left the next one to be tried.
// Everything that can be known of it is known before anything is written: a release that
// is good becomes a plan, and the plan is carried out in one order.
//
// It refuses what is not signed, what is not newer, and what this machine could not go
// back from; and it starts nothing.
package staging

import (
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// NoteFile is where the fetcher leaves its note.
const NoteFile = rootpart.Shared + "/" + statefiles.StagedName

// Tries is how many tries a trial gets, the first time and the second.
const Tries = 3

// AttemptsFile has the version that is being staged and how often that was begun,
// while it is. MaxAttempts is how many beginnings a release gets.
const (
	AttemptsFile = rootpart.OwnDirectory + "/staging"
	MaxAttempts  = 3
)

// State is what becomes of what systems have written when another one is staged.
type State struct {
	// Leave removes the state of every system but the running one; next is the one that
	// is staged, which must find none.
	Leave func(next verity.Root) error
	// Snapshot takes one of what all systems share, before a version is tried, and returns
	// what the boot journal is to say of it.
	Snapshot func(v contract.Version) string
}

// A stager stages one release.
type stager struct {
	*host.Host
	state State
}

// Waits reports whether the fetcher has left a release to be staged. Whether it may be
// is for Stage to say, which reads more.
func Waits(h *host.Host) bool {
	s := stager{Host: h}
	note, err := s.readNote()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil:
		return true
	case note.Version == s.Contract.Version:
		return false // it is running, and the cut that left the note harmed nothing
	}
	_, there := s.nameOf(note.Version)
	return !there // or else it is staged
}

// nameOf is the name of a version's UKI on the ESP.
func (s *stager) nameOf(v contract.Version) (bls.Name, bool) {
	for _, n := range s.Names {
		if n.ImageID == s.Contract.ImageID && n.Version == v {
			return n, true
		}
	}
	return bls.Name{}, false
}

func (s *stager) readNote() (*statefiles.Staged, error) {
	text, err := s.Store.Read(NoteFile, statefiles.MaxStaged)
	if errors.Is(err, hw.ErrUnfit) {
		return nil, fetched.Refused(err)
	}
	if err != nil {
		return nil, err
	}
	note := new(statefiles.Staged)
	if err := strictjson.Decode(text, note); err != nil {
		return nil, fetched.Refuse("what the fetcher left cannot be read: %w", err)
	}
	if note.Format != statefiles.StagedFormat || note.Version == 0 || !note.Slot.Valid() {
		return note, fetched.Refuse("what the fetcher left is malformed: format %d, version %s, slot %s", note.Format, note.Version, note.Slot)
	}
	return note, nil
}

// Stage makes a fetched release the next one to be tried. Everything that the
// fetcher has checked is checked again: it may have been taken over since, or
// have been somebody else. The one thing not read again is the content of the
// slot, which the running trial will read through dm-verity.
//
// What is refused is forgotten; what could not be done is tried at the next boot.
func Stage(h *host.Host, state State) error {
	s := stager{h, state}
	note, err := s.readNote()
	if err == nil {
		err = s.attempt(note)
	}
	r, refused := errors.AsType[fetched.Refusal](err)
	if !refused {
		return err
	}
	e := journal.Entry{Kind: journal.Refused, Reason: r.Error()}
	if note != nil {
		e.Version, e.Slot = note.Version, note.Slot
	}
	s.Journal.Note(e)
	return errors.Join(err, s.Store.Remove(NoteFile))
}

// attempt counts the beginnings that have no end: the running system is blessed and
// has no tries to lose, so a release that takes the machine down while it is looked
// at would do so at every boot.
func (s *stager) attempt(note *statefiles.Staged) error {
	var v contract.Version
	n := 0
	text, err := s.Store.Read(AttemptsFile, statefiles.MaxStaged)
	if err == nil {
		_, _ = fmt.Sscanf(string(text), "%d %d", &v, &n) // or else it counts from the start
	}
	if v != note.Version {
		n = 0
	}
	if n < MaxAttempts {
		if err := s.Store.Keep(AttemptsFile, fmt.Appendf(nil, "%d %d\n", note.Version, n+1)); err != nil {
			return err
		}
		err = s.stageNoted(note)
	} else {
		err = fetched.Refuse("the machine went down %d times while this was staged", n)
	}
	return errors.Join(err, s.Store.Remove(AttemptsFile))
}

func (s *stager) stageNoted(note *statefiles.Staged) error {
	c, err := s.checkRelease(note)
	if err != nil {
		return err
	}
	if err := s.ListRelease(c.release); err != nil {
		return err
	}
	if c.uki, err = fetched.Sign(s.Host, c.uki); err != nil {
		return err
	}
	p, err := s.plan(c)
	if err != nil {
		return err
	}
	if err := s.activate(p); err != nil {
		return err
	}
	s.Journal.Note(journal.Entry{Kind: journal.Staged, Version: note.Version, Slot: note.Slot, Reason: p.snapshot})
	s.Log.Say("%s %s is in slot %s and gets %d tries", c.contract.ImageID, note.Version, note.Slot, Tries)
	if err := s.Store.Remove(NoteFile); err != nil {
		s.Log.Say("what the fetcher left was not removed: %v", err) // it is staged all the same
	}
	return nil
}
