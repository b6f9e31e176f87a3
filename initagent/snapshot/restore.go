package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/subvolume"
	"halogenos.internal/initagent/upper"
)

// NoteName is the name, in the directory that the running system shares with the boot, of
// the note by which `ota rollback --state` asks the next boot to go back.
const NoteName = "rollback-state.json"

// A Note asks the next boot to put directories back, or to undo that. Root of the running
// system can write any, and gains nothing: it names nothing but a system and a time, by
// which the boot finds the note to be about what it has, and what it puts in place root
// could have put there.
type Note struct {
	Format int    `json:"format"`
	System string `json:"system"` // root hash of the image that is to run on it
	// Of is when the snapshot was taken, or, to undo, when what is set aside was.
	Of   time.Time `json:"of"`
	Undo bool      `json:"undo,omitempty"`
	// From is the version that has run on what is there now.
	From contract.Version `json:"from"`
}

func (n *Note) check() error {
	if n.Format != format || !rootHash.MatchString(n.System) {
		return fmt.Errorf("format %d, system %.70q: it is malformed", n.Format, n.System)
	}
	return nil
}

// Encode returns the note's content.
func (n Note) Encode() ([]byte, error) {
	n.Format = format
	return encode(&n)
}

// A plan is an exchange that is under way. For each directory there is one in From that
// takes its place, and what is in its place goes to To.
type plan struct {
	Format      int      `json:"format"`
	Directories []string `json:"directories"`
	From        string   `json:"from"`
	Aside       Aside    `json:"aside"` // its Where is To
}

func (p *plan) check() error {
	if p.Format != format || p.From != next && !slices.Contains(asides[:], p.From) || p.From == p.Aside.Where {
		return fmt.Errorf("format %d, from %q to %q: it is malformed", p.Format, p.From, p.Aside.Where)
	}
	return errors.Join(checkDirectories(p.Directories), p.Aside.check())
}

// Asked reports whether the boot has something to put back, or to go on with.
func Asked(s Store, note string) bool {
	for _, name := range []string{planFile, note} {
		if _, err := s.Read(name, maxFile); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// A Result says what came of it.
type Result struct {
	Directories []string // that were put back
	Undo        bool
	Declined    string // why none were; nothing has changed
	Where       string // below the root partition, what was there before
	Warning     string // what went wrong when all was done
}

// Restore puts directories back as a note asks, under the system that runs; or finishes
// what was begun, whichever system runs. Nothing is mounted of them.
//
// Order: copies of the snapshots that can be written to are made; the plan is written; the
// directories are exchanged; it is written what is set aside; the note goes, and the plan
// goes last. Cut before the plan is there, the directories are in their places, the note
// is there still, and all is done again: copies that were made are removed first. Cut
// after it, this goes on (see exchange). Cut between note and plan, the plan is gone
// through once more and finds nothing to do.
//
// An error means that a directory may be in neither place, and that the boot cannot go on.
func Restore(s Store, note, runs string, now time.Time) (Result, error) {
	p := new(plan)
	err := read(s, planFile, p)
	if errors.Is(err, fs.ErrNotExist) {
		var why error
		if p, why = begin(s, note, runs, now); why != nil {
			return Result{Declined: why.Error()}, nil
		}
		err = nil
	}
	if err == nil {
		err = exchange(s, p)
	}
	if err != nil {
		return Result{}, fmt.Errorf("the exchange that %s describes is not complete: %w", planFile, err)
	}
	out := Result{Directories: p.Directories, Undo: p.From != next, Where: p.Aside.Where}
	if err := finish(s, note, p); err != nil {
		out.Warning = err.Error()
	}
	return out, nil
}

// begin writes the plan. An error means that nothing has changed, and the note is gone.
func begin(s Store, note, runs string, now time.Time) (*plan, error) {
	p, err := prepare(s, note, runs, now)
	if err == nil {
		if err = keep(s, planFile, p); err == nil {
			return p, nil
		}
	}
	return nil, errors.Join(err, s.Remove(note), sweep(s, next))
}

func prepare(s Store, note, runs string, now time.Time) (*plan, error) {
	n := new(Note)
	if err := read(s, note, n); err != nil {
		return nil, err
	}
	if n.System != runs {
		return nil, fmt.Errorf("it was asked for under system %.16s, and this is system %.16s", n.System, runs)
	}
	aside, err := ReadAside(s)
	if err != nil {
		return nil, err
	}
	p := &plan{Format: format, Aside: Aside{Format: format, Time: now.UTC().Truncate(time.Second), Version: n.From, Where: asides[0]}}
	if n.Undo {
		err = p.undo(n, aside)
	} else {
		err = p.goBack(s, n, aside)
	}
	if err != nil {
		return nil, err
	}
	p.Aside.Directories = p.Directories
	return p, sweep(s, p.Aside.Where)
}

// undo takes what is set aside, which stays where it is until the plan is written.
func (p *plan) undo(n *Note, aside *Aside) error {
	if aside == nil || !aside.Time.Equal(n.Of) {
		return errors.New("what was set aside is not there any more")
	}
	p.Directories, p.From = aside.Directories, aside.Where
	if p.Aside.Where == aside.Where {
		p.Aside.Where = asides[1]
	}
	return nil
}

// goBack makes copies of the snapshots.
func (p *plan) goBack(s Store, n *Note, aside *Aside) error {
	record, err := ReadRecord(s)
	switch {
	case err != nil:
		return err
	case record == nil || record.Missing != "" || !record.Taken.Equal(n.Of):
		return errors.New("the snapshot that it was asked for is not there any more")
	case aside != nil:
		return errors.New("something is set aside already")
	}
	p.Directories, p.From = record.Directories, next
	if err := sweep(s, next); err != nil {
		return err
	}
	if err := makeDirectory(s, next); err != nil {
		return err
	}
	for _, d := range p.Directories {
		if err := s.Snapshot(at(Before, d), at(next, d), false); err != nil {
			return err
		}
	}
	return nil
}

// exchange puts each directory of a plan into its place, by two renames. Before the first,
// it is in its place and the other one in From; between the two its place is empty, and
// no boot mounts it or makes it again, since each does this first; after the second, From
// has it no more. So what there is says how far it has come, and a cut costs nothing.
func exchange(s Store, p *plan) error {
	if err := makeDirectory(s, p.Aside.Where); err != nil {
		return err
	}
	for _, d := range p.Directories {
		place, from, to := at(upper.Bind, d), at(p.From, d), at(p.Aside.Where, d)
		waiting, err := s.Look(from)
		if err != nil {
			return err
		}
		if waiting == subvolume.Absent {
			continue
		}
		there, err := s.Look(place)
		if err != nil {
			return err
		}
		if there != subvolume.Absent {
			if err := s.Rename(place, to); err != nil {
				return err
			}
		}
		if err := s.Rename(from, place); err != nil {
			return err
		}
	}
	return nil
}

// finish ends a plan that is carried out. What fails here is done by the next boot, which
// finds nothing to exchange.
func finish(s Store, note string, p *plan) error {
	if err := keep(s, asideFile, &p.Aside); err != nil {
		return err
	}
	if err := s.Remove(note); err != nil {
		return err
	}
	return s.Remove(planFile)
}

// Tidy removes what no record names, as a cut leaves it, and the snapshot where there is
// too little room. It returns what a person should know of it. What is set aside stays:
// it may be all that there is of something.
//
// The record says first that there is no snapshot: cut after that, the next boot removes
// the rest.
func Tidy(s Store, note string) (said []string, err error) {
	if Asked(s, note) {
		return nil, nil
	}
	room, err := s.Room()
	if err != nil {
		return nil, err
	}
	record, err := ReadRecord(s)
	if err != nil {
		return nil, err
	}
	aside, err := ReadAside(s)
	if err != nil {
		return nil, err
	}
	tight := room.Tight()
	if tight != "" && record != nil && record.Missing == "" {
		record.Missing, record.Directories = "it was removed: "+tight, nil
		if err := keep(s, recordFile, record); err != nil {
			return nil, err
		}
		said = append(said, fmt.Sprintf("the snapshot from before version %s was tried goes: %s", record.For, tight))
	}
	unused := []string{next}
	if record == nil || record.Missing != "" {
		unused = append(unused, Before)
	}
	for _, d := range asides {
		if aside == nil || aside.Where != d {
			unused = append(unused, d)
		}
	}
	for _, d := range unused {
		if err := sweep(s, d); err != nil {
			return said, err
		}
	}
	if tight != "" && aside != nil {
		said = append(said, fmt.Sprintf("%s: what `ota rollback --state` has set aside takes room; it is in /run/state/%s, and goes with the next update", tight, aside.Where))
	}
	return said, nil
}
