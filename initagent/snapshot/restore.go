package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
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
	// Version is that system's: a release that changes the UKI alone has the same image.
	Version contract.Version `json:"version"`
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

// Asked reports whether the boot has something to put back, or to go on with. A boot
// writes a plan as a file, into a directory of its own: where either is anything else, there
// is none.
func Asked(s Store, note string) bool {
	if _, err := s.Read(planFile, maxFile); !noPlan(err) {
		return true
	}
	_, err := s.Read(note, maxFile)
	return !errors.Is(err, fs.ErrNotExist)
}

func noPlan(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrUnfit) }

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
// Order: copies of the snapshots that can be written to are made, where Prepare's are not
// there; the plan is written; the directories are exchanged; it is written what is set
// aside; the note goes, and the plan goes last. Cut before the plan is there, the
// directories are in their places, the note is there still, and all is done again. Cut
// after it, this goes on (see exchange). Cut between note and plan, the plan is gone
// through once more and finds nothing to do.
//
// An error means that the boot cannot go on: a directory may be in neither place, or the
// disk takes no more, and the system that went back would start on what it was to be spared.
func Restore(s Store, note string, runs System, now time.Time) (Result, error) {
	p := new(plan)
	err := read(s, planFile, p)
	if noPlan(err) {
		if p, err = begin(s, note, runs, now); err != nil {
			return withdraw(s, note, err)
		}
	}
	if err != nil {
		return Result{}, fmt.Errorf("what is under way cannot be read: %w", err)
	}
	missing, err := exchange(s, p)
	if err != nil {
		if untouched(s, p) {
			return withdraw(s, note, err)
		}
		return Result{}, fmt.Errorf("the exchange that %s describes is not complete, and the next start goes on with it: %w", planFile, err)
	}
	out := Result{Directories: p.Directories, Undo: p.From != next, Where: p.Aside.Where}
	if len(missing) > 0 {
		err = fmt.Errorf("nothing was to be found of %s, which begins as it is in the image", Names(missing))
	}
	if err := errors.Join(err, finish(s, note, p)); err != nil {
		out.Warning = oneLine(err)
	}
	return out, nil
}

// withdraw ends what has not been begun. A disk that takes no more says nothing against
// what was asked for, which stays: the one who asked has given up the other system, so that
// this one would start on what it wrote.
//
// The plan goes before the copies that it is about: without the order, a cut leaves one
// that puts nothing back and says that it did.
func withdraw(s Store, note string, why error) (Result, error) {
	if err := s.Remove(planFile); err != nil && !errors.Is(err, ErrUnfit) {
		return Result{}, errors.Join(why, err)
	}
	if diskFails(why) {
		return Result{}, fmt.Errorf("nothing has changed yet, and the next start tries it again: %w", why)
	}
	err := s.Remove(note)
	if err == nil {
		_, err = sweep(s, next)
	}
	return Result{Declined: oneLine(errors.Join(why, err))}, nil
}

// diskFails reports whether an error is of the disk, or for want of room on it.
func diskFails(err error) bool {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// begin writes the plan.
func begin(s Store, note string, runs System, now time.Time) (*plan, error) {
	p, err := prepare(s, note, runs, now)
	if err == nil {
		err = keep(s, planFile, p)
	}
	return p, err
}

func prepare(s Store, note string, runs System, now time.Time) (*plan, error) {
	n := new(Note)
	if err := read(s, note, n); err != nil {
		return nil, err
	}
	if n.System != runs.Root || n.Version != runs.Version {
		return nil, fmt.Errorf("it was asked for under system %.16s of version %s, and this is system %.16s of version %s", n.System, n.Version, runs.Root, runs.Version)
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
	// Nothing is there, unless a cut or a person has left it.
	_, err = moveAll(s, p.Aside.Where, "")
	return p, err
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

// goBack sees to copies of the snapshots.
func (p *plan) goBack(s Store, n *Note, aside *Aside) error {
	if aside != nil {
		return errors.New("something is set aside already")
	}
	var err error
	p.From = next
	p.Directories, err = copies(s, n)
	return err
}

// Prepare makes what the next boot puts into place, so that want of room is found while
// somebody is there who has asked, and has not given anything up yet. It refuses while a plan
// is there whose end a boot could not write down, as on a full disk: the next boot goes on
// with that plan, and would take what is made here for its own, whatever becomes of n.
func Prepare(s Store, n Note) error {
	if _, err := s.Read(planFile, maxFile); !noPlan(err) {
		return errors.Join(errors.New("what was put back at the last start is not written down yet, for want of room perhaps: make some, restart, and ask again"), err)
	}
	if n.Undo {
		return nil // it is there
	}
	if _, err := sweep(s, next); err != nil {
		return err
	}
	_, err := copies(s, &n)
	return err
}

// copies makes those that are missing of the copies of the snapshots that can be written
// to, and returns the directories.
func copies(s Store, n *Note) ([]string, error) {
	record, err := ReadRecord(s)
	switch {
	case err != nil:
		return nil, err
	case record == nil || record.Missing != "" || !record.Taken.Equal(n.Of):
		return nil, errors.New("the snapshot that it was asked for is not there any more")
	}
	if err := makeDirectory(s, next); err != nil {
		return nil, err
	}
	for _, d := range record.Directories {
		kind, err := s.Look(at(next, d))
		if err == nil && kind == subvolume.Directory {
			err = s.Discard(at(next, d))
		}
		if err == nil && kind != subvolume.Subvolume {
			err = s.Snapshot(at(Before, d), at(next, d), false)
		}
		if err != nil {
			return nil, err
		}
	}
	return record.Directories, nil
}

// exchange puts each directory of a plan into its place, by two renames. Before the first,
// it is in its place and the other one in From; between the two its place is empty, and
// no boot mounts it or makes it again, since each does this first; after the second, From
// has it no more. So what there is says how far it has come, and a cut costs nothing.
// missing are those of which nothing is anywhere.
func exchange(s Store, p *plan) (missing []string, err error) {
	if err := makeDirectory(s, p.Aside.Where); err != nil {
		return nil, err
	}
	for _, d := range p.Directories {
		if err := exchangeOne(s, at(upper.Bind, d), at(p.From, d), at(p.Aside.Where, d)); err != nil {
			return nil, err
		}
		kind, err := s.Look(at(upper.Bind, d))
		if err != nil {
			return nil, err
		}
		if kind == subvolume.Absent {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// exchangeOne exchanges one. Somebody at the console may have made or removed any of the
// three: what is in its place stays where nothing waits for it, what was taken out of it
// comes back where nothing else would be there, and nothing is written over.
func exchangeOne(s Store, place, from, to string) error {
	var kind [3]subvolume.Kind
	for i, name := range []string{place, from, to} {
		var err error
		if kind[i], err = s.Look(name); err != nil {
			return err
		}
	}
	there, waits, aside := kind[0] != subvolume.Absent, kind[1] != subvolume.Absent, kind[2] != subvolume.Absent
	switch {
	case !waits && !there && aside:
		return rename(s, to, place)
	case !waits:
		return nil
	case there && aside:
		if _, err := moveAway(s, place, ""); err != nil {
			return err
		}
	case there:
		if err := rename(s, place, to); err != nil {
			return err
		}
	}
	err := rename(s, from, place)
	if err != nil && there != aside {
		return errors.Join(err, rename(s, to, place))
	}
	return err
}

// untouched reports whether nothing of a plan was carried out.
func untouched(s Store, p *plan) bool {
	for _, d := range p.Directories {
		waits, err := s.Look(at(p.From, d))
		if err != nil || waits == subvolume.Absent {
			return false
		}
		if aside, err := s.Look(at(p.Aside.Where, d)); err != nil || aside != subvolume.Absent {
			return false
		}
	}
	return true
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

// A Boot is what Tidy goes by.
type Boot struct {
	System string // root hash of the image that runs
	Trial  bool   // it was never blessed
}

// Tidied is what a person should know.
type Tidied struct {
	Gone  []string // what was removed, or moved: once
	Tight []string // what takes room that is wanted: at each boot
}

// Tidy removes what no record names, as a cut leaves it, and the snapshot where there is
// too little room: but not while it is what somebody may want next, in a trial, and under
// the system that it is of. What is set aside stays: it may be all that there is of
// something. Where no record names it, it moves to Left.
//
// The record says first that there is no snapshot: cut after that, the next boot removes
// the rest.
func Tidy(s Store, note string, b Boot) (out Tidied, err error) {
	if Asked(s, note) {
		return out, nil
	}
	room, err := s.Room()
	if err != nil {
		return out, err
	}
	record, err := ReadRecord(s)
	if err != nil {
		return out, err
	}
	aside, err := ReadAside(s)
	if err != nil {
		return out, err
	}
	tight := room.Tight()
	if tight != "" && record != nil && record.Missing == "" {
		if wanted := b.Trial || record.System.Root == b.System; wanted {
			out.Tight = append(out.Tight, fmt.Sprintf("%s: the snapshot from before version %s was tried keeps what was deleted and overwritten since; `ota rollback --state` goes back to it, and `ota rollback --state --forget` deletes it", tight, record.For))
		} else {
			if err := drop(s, record, tight); err != nil {
				return out, err
			}
			out.Gone = append(out.Gone, fmt.Sprintf("the snapshot from before version %s was tried goes: %s", record.For, tight))
		}
	}
	err = out.sweep(s, record, aside)
	if left, lerr := s.Names(Left); tight != "" && (aside != nil || lerr == nil && len(left) > 0) {
		out.Tight = append(out.Tight, tight+": what going back has set aside takes room, in /run/state/"+Directory+"; `ota rollback --state --forget` deletes it")
	}
	return out, err
}

// drop has a record say that there is no snapshot. On a disk that is so full that nothing
// can be written, one that is missing says so, too: deleting works there.
func drop(s Store, record *Record, why string) error {
	record.Missing, record.Directories = "it was removed: "+why, nil
	err := keep(s, recordFile, record)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return s.Remove(recordFile)
	}
	return err
}

func (t *Tidied) sweep(s Store, record *Record, aside *Aside) error {
	unused := []string{next}
	if record == nil || record.Missing != "" {
		unused = append(unused, Before)
	}
	var failed []error
	for _, d := range unused {
		said, err := sweep(s, d)
		t.Gone, failed = append(t.Gone, said...), append(failed, err)
	}
	for _, d := range asides {
		if aside == nil || aside.Where != d {
			said, err := moveAll(s, d, "")
			t.Gone, failed = append(t.Gone, said...), append(failed, err)
		}
	}
	return errors.Join(failed...)
}
