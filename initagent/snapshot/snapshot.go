// Package snapshot keeps what the directories that all systems share held before an
// update was tried, and puts it back when somebody has asked for it. It works on a root
// partition of btrfs, where these directories are subvolumes.
//
// It refuses to go back by itself, to a snapshot that the asking was not about, and under
// a system that it is not of. What it takes out of its place, and the snapshot from before
// an update that failed, it keeps until somebody has it deleted.
package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/subvolume"
	"halogenos.internal/initagent/upper"
)

// Where the root partition has it. Only root enters the directory around it: programs and
// files of before may be open to others.
const (
	Directory = "snapshots"
	Before    = Directory + "/before" // the snapshots, read-only
	next      = Directory + "/next"   // copies of them that can be written to, until they are in place
	// Left has what was to be removed, and holds subvolumes of others.
	Left = Directory + "/left"

	recordFile = Directory + "/record.json"
	asideFile  = Directory + "/aside.json"
	planFile   = Directory + "/plan.json"
)

// asides are where that lies which was taken out of its place: going back on a rollback
// needs both.
var asides = [2]string{Directory + "/aside-a", Directory + "/aside-b"}

const (
	format = 1
	// maxFile bounds each of the files in bytes, maxDirectories what they name: as many as
	// state.conf may have.
	maxFile        = 64 << 10
	maxDirectories = 64
)

// A Store is the root partition's file system. Once a method has returned, what it did
// survives a power cut; a cut leaves the whole of it or nothing.
type Store interface {
	Read(name string, limit int64) ([]byte, error)
	Keep(name string, content []byte) error
	Remove(name string) error
	MakeDirectory(name string, mode fs.FileMode) error
	Names(name string) ([]string, error)
	Discard(name string) error
	Subvolumes
}

// Subvolumes is what a btrfs has beside.
type Subvolumes interface {
	// Look says what has a name.
	Look(name string) (subvolume.Kind, error)
	// Snapshot makes a subvolume with the content of another one.
	Snapshot(from, to string, readOnly bool) error
	// RemoveSubvolume removes one; subvolume.ErrNested where others lie in it.
	RemoveSubvolume(name string) error
	// Rename gives a directory another name, which nothing has.
	Rename(from, to string) error
	// Release takes away what keeps a directory from being renamed or removed, and returns
	// it; Hold puts it back.
	Release(name string) (subvolume.Hold, error)
	Hold(name string, held subvolume.Hold) error
	// Room is how much there is. AwaitRoom waits for what removed subvolumes still take,
	// until it is enough, or nothing is freed any more, or a minute is over.
	Room() (Room, error)
	AwaitRoom(enough func(Room) bool) (Room, error)
}

// ErrUnfit is wrapped by a Store's refusals to read what is there.
var ErrUnfit = errors.New("not what is read here")

// A System is one of the machine's.
type System struct {
	Version contract.Version `json:"version"`
	Slot    layout.Slot      `json:"slot,omitempty"`
	Root    string           `json:"root_hash"` // of its image
}

// is reports whether two are the same, wherever they lie. A release that changes the UKI
// alone has the image of the one before it.
func (s System) is(t System) bool { return s.Root == t.Root && s.Version == t.Version }

// A Record says what the snapshot is of.
type Record struct {
	Format int       `json:"format"`
	Taken  time.Time `json:"taken"`  // by a clock that may be off
	System System    `json:"system"` // that ran until then, and staged the update
	// For is the release that was staged.
	For contract.Version `json:"for"`
	// Directories are those that it has, as the system sees them.
	Directories []string `json:"directories"`
	// Plain are those that are not subvolumes, so that it has nothing of them.
	Plain []string `json:"plain,omitempty"`
	// Missing says why there is no snapshot; "" where there is one.
	Missing string `json:"missing,omitempty"`
}

// An Aside says what was taken out of its place.
type Aside struct {
	Format      int              `json:"format"`
	Time        time.Time        `json:"time"`
	Version     contract.Version `json:"version,omitempty"` // whose system ran last on it
	Directories []string         `json:"directories"`
	Where       string           `json:"where"` // below the root partition
}

var rootHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (r *Record) check() error {
	switch {
	case r.Format != format:
		return fmt.Errorf("format %d, want %d", r.Format, format)
	case !rootHash.MatchString(r.System.Root):
		return fmt.Errorf("%q is not the root hash of a system", r.System.Root)
	case (len(r.Directories) == 0) != (r.Missing != ""):
		return errors.New("it names no directories, and not why, or both")
	}
	return checkDirectories(r.Directories)
}

func (a *Aside) check() error {
	switch {
	case a.Format != format:
		return fmt.Errorf("format %d, want %d", a.Format, format)
	case !slices.Contains(asides[:], a.Where):
		return fmt.Errorf("%q is not where anything is set aside", a.Where)
	}
	return checkDirectories(a.Directories)
}

// checkDirectories: root of the running system can write the files, and their names
// become those of subvolumes.
func checkDirectories(all []string) error {
	if len(all) > maxDirectories {
		return fmt.Errorf("%d directories, more than %d", len(all), maxDirectories)
	}
	var names []string
	for _, d := range all {
		name := upper.Name(d)
		if !path.IsAbs(d) || path.Clean(d) != d || name == "" || name == "." || name == ".." || strings.ContainsRune(name, 0) || slices.Contains(names, name) {
			return fmt.Errorf("%q is not a directory of state.conf", d)
		}
		names = append(names, name)
	}
	return nil
}

// checked is one of the files.
type checked interface{ check() error }

// read reads a file; fs.ErrNotExist where there is none.
func read(s Store, name string, to checked) error {
	text, err := s.Read(name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist
	}
	if err == nil {
		err = strictjson.Decode(text, to)
	}
	if err == nil {
		err = to.check()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func encode(v checked) ([]byte, error) {
	text, err := json.Marshal(v)
	if err == nil {
		err = v.check()
	}
	return append(text, '\n'), err
}

func keep(s Store, name string, v checked) error {
	text, err := encode(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return s.Keep(name, text)
}

// ReadRecord returns the record of the last staging; nil where there is none.
func ReadRecord(s Store) (*Record, error) {
	r := new(Record)
	err := read(s, recordFile, r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return r, err
}

// ReadAside returns what is set aside; nil where nothing is.
func ReadAside(s Store) (*Aside, error) {
	a := new(Aside)
	err := read(s, asideFile, a)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return a, err
}

// Take replaces the snapshot by one of what is now: the one before it is of the other
// slot's old system, which gives way to a release. But where r's system has taken that one,
// too, the release that it was taken for has not lasted, and what is now is what its trial
// has left: the snapshot moves to [Left], and so does what was set aside. Nothing but [Forget]
// removes it there: it may be all that there is of something. tried reports whether the
// release of a record was ever started. r is the record, without directories; what Take
// returns says what came of it, and said what a person should know. An error means that the
// record could not say so, or that the one before it stays with its snapshot.
//
// The record goes first and comes last. Cut before it is there, there is no snapshot, and
// what is left of one is removed by Tidy. The snapshots are of one moment: nothing writes
// to these directories while the initramfs is the root.
func Take(s Store, r Record, entries []stateconf.Entry, tried func(Record) bool) (_ Record, said []string, err error) {
	r.Format, r.Taken = format, r.Taken.UTC().Truncate(time.Second)
	if err := makeDirectory(s, Directory); err != nil {
		return r, nil, err
	}
	said, err = keepFailed(s, r, tried)
	if err != nil {
		return r, said, err
	}
	more, err := giveWay(s)
	said = append(said, more...)
	if err == nil {
		err = take(s, &r, entries)
	}
	if err != nil {
		more, serr := sweep(s, Before)
		said = append(said, more...)
		r.Directories, r.Missing = nil, oneLine(errors.Join(err, serr))
	}
	return r, said, keep(s, recordFile, &r)
}

// keepFailed moves the snapshot of a release that has not lasted out of the way of the next
// one; r is the new record. A release that was staged once more, since that was cut or has
// failed, has changed nothing.
//
// The record goes after it: in the other order a cut would have Tidy remove what no record
// names. Cut in between, it names what is gone, nothing goes back to that, and the next
// staging moves the rest.
func keepFailed(s Store, r Record, tried func(Record) bool) (said []string, err error) {
	old, err := ReadRecord(s)
	prefix, of := "", "is a snapshot of which nothing is known"
	switch {
	case err != nil: // whatever is there may be that
	case old == nil || !old.System.is(r.System) || old.For == r.For && !tried(*old):
		return nil, nil
	default:
		prefix, of = fmt.Sprintf("%sbefore-%s-", old.Taken.Format(dated), old.For), fmt.Sprintf("is the snapshot from before version %s was tried, which has not lasted", old.For)
	}
	return each(s, Before, func(name string, _ subvolume.Kind) ([]string, error) {
		to, err := moveAway(s, name, prefix)
		return []string{fmt.Sprintf("/run/state/%s %s; `ota rollback --state --forget` deletes it", to, of)}, err
	})
}

// dated begins the names in Left.
const dated = "2006-01-02-"

// oneLine is an error's text without line breaks.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// giveWay removes the snapshot that there is, and moves what is set aside. That a plan is
// left means that it is carried out, but for its end: see finish.
func giveWay(s Store) (said []string, err error) {
	aside, err := ReadAside(s)
	if err != nil {
		aside = nil // it is moved all the same
	}
	for _, name := range []string{recordFile, asideFile, planFile} {
		if err := s.Remove(name); err != nil {
			return nil, err
		}
	}
	when := ""
	if aside != nil {
		when = aside.Time.Format(dated)
	}
	var failed []error
	for _, d := range []string{Before, next} {
		more, err := sweep(s, d)
		said, failed = append(said, more...), append(failed, err)
	}
	for _, d := range asides {
		more, err := moveAll(s, d, when)
		said, failed = append(said, more...), append(failed, err)
	}
	return said, errors.Join(failed...)
}

func take(s Store, r *Record, entries []stateconf.Entry) error {
	var all []string
	for _, e := range entries {
		if !e.GoesBack() {
			continue
		}
		switch kind, err := s.Look(at(upper.Bind, e.Path)); {
		case err != nil:
			return err
		case kind == subvolume.Subvolume:
			all = append(all, e.Path)
		case kind == subvolume.Directory:
			r.Plain = append(r.Plain, e.Path)
		}
	}
	if len(all) == 0 {
		return errPlain
	}
	room, err := s.AwaitRoom(func(r Room) bool { return r.Refuses() == "" })
	if err != nil {
		return err
	}
	if why := room.Refuses(); why != "" {
		return errors.New(why)
	}
	if err := makeDirectory(s, Before); err != nil {
		return err
	}
	for _, d := range all {
		if err := s.Snapshot(at(upper.Bind, d), at(Before, d), true); err != nil {
			return err
		}
	}
	r.Directories = all
	return nil
}

// errPlain is why a machine that an earlier release has set up has no snapshot.
var errPlain = errors.New("the directories are not subvolumes: a release that did not make them so has set this machine up")

// at is where a directory of state.conf has its own in another one.
func at(parent, directory string) string { return path.Join(parent, upper.Name(directory)) }

// makeDirectory makes Directory, and one in it. An owner may have put a link to another
// disk there: nothing is written through it.
func makeDirectory(s Store, name string) error {
	if _, err := s.Names(Directory); err != nil {
		return fmt.Errorf("%s is to be a directory of the root partition, and nothing else (remove it, or give it another name): %w", Directory, err)
	}
	for _, name := range slices.Compact([]string{Directory, name}) {
		if err := s.MakeDirectory(name, 0o700); err != nil {
			return err
		}
		if _, err := s.Release(name); err != nil {
			return err
		}
	}
	return nil
}
