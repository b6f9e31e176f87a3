package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
)

// measuring is how long the directories are measured, all of them: it is for people who
// wait for an answer, and a large /var takes minutes.
const measuring = 10 * time.Second

// A StateRollback is what `ota rollback --state` does.
type StateRollback struct {
	// Rollback is of the system; nil where the one that the snapshot is of runs already.
	Rollback *Rollback `json:"rollback,omitempty"`
	// Undo: it takes back an earlier one.
	Undo bool `json:"undo"`
	// Of is when the directories held what comes back.
	Of time.Time `json:"of"`
	// Version is that of the system that wrote it; 0 where that is not known.
	Version contract.Version `json:"version,omitempty"`
	// Next is that of the system that will run on it.
	Next        contract.Version `json:"next"`
	Directories []Held           `json:"directories"`
	// Plain are directories that are not subvolumes, so that they stay as they are.
	Plain []string `json:"plain,omitempty"`

	note   snapshot.Note
	giving *giving
}

// Held is what a directory holds.
type Held struct {
	Path string `json:"path"`
	Then *Usage `json:"then,omitempty"` // nil where it was not measured
	Now  *Usage `json:"now,omitempty"`
}

// Usage is the room that files take.
type Usage struct {
	Bytes int64 `json:"bytes"`
	Files int64 `json:"files"`
}

// PlanState says what going back would do. It writes nothing.
func (m *Machine) PlanState() (*StateRollback, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	s, choice, err := m.planState(r)
	if err != nil {
		return nil, err
	}
	until := m.Now().Add(measuring)
	for _, d := range choice.Directories {
		now, then := choice.Place(d)
		s.Directories = append(s.Directories, Held{d, m.usage(then, until), m.usage(now, until)})
	}
	return s, nil
}

func (m *Machine) planState(r *Running) (*StateRollback, *snapshot.Choice, error) {
	if err := m.haveState(r); err != nil {
		return nil, nil, err
	}
	c := snapshot.Case{FileSystem: r.Contract.RootFileSystem, Runs: r.asSystem()}
	var err error
	if c.FileSystem == "btrfs" {
		c.Record, err = snapshot.ReadRecord(m.Snapshots)
	}
	if err == nil && c.FileSystem == "btrfs" {
		c.Aside, err = snapshot.ReadAside(m.Snapshots)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("what is known of the snapshot: %w", err)
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, nil, err
	}
	s := new(StateRollback)
	if s.giving, err = m.givenUpForState(r, inv, c); err != nil {
		return nil, nil, err
	}
	c.Next = c.Runs
	if s.giving != nil {
		c.Next, s.Rollback = s.giving.next, &s.giving.Rollback
	}
	choice, err := snapshot.Choose(c)
	if err != nil {
		return nil, nil, err
	}
	s.note, s.Undo, s.Of, s.Next = choice.Note, choice.Note.Undo, choice.Note.Of, c.Next.Version
	if s.Undo {
		s.Version = c.Aside.Version
	} else {
		s.Version, s.Plain = c.Record.System.Version, c.Record.Plain
	}
	return s, choice, nil
}

// givenUpForState is what has to be given up; nil where the system that runs stays, and
// only directories go back.
func (m *Machine) givenUpForState(r *Running, inv *inventory.Inventory, c snapshot.Case) (*giving, error) {
	g, err := m.planGivingUp(r, inv)
	stays := c.Aside != nil || c.Record != nil && c.Record.System.Root == c.Runs.Root && c.Record.System.Version == c.Runs.Version
	switch {
	case err == nil && g.staged:
		return nil, fmt.Errorf("version %s is fetched, and the next start tries it: give it up (`ota rollback`), or start it, and then go back", g.Given)
	case err != nil && (stays || c.FileSystem != "btrfs" || c.Record == nil):
		return nil, nil // there is nothing to give up, or Choose has the better reason
	}
	return g, err
}

// usage measures a directory of the root partition; nil where it takes too long, or
// cannot be read.
func (m *Machine) usage(directory string, until time.Time) *Usage {
	u := new(Usage)
	err := filepath.WalkDir(m.path(consoleRoot, directory), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if m.Now().After(until) {
			return errors.New("it takes too long")
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !d.IsDir() {
			u.Bytes += st.Blocks * 512 // stat(2) counts in these
			u.Files++
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return u
}

// RollbackState does what PlanState has said, and asks the next boot for the rest.
//
// What the next boot needs room for is made before anything is given up. Then the note
// comes. Cut after it, the next boot is that of the system which was to be
// given up: it takes the note away, and says that nothing has changed. In the other order
// the system before would start on directories that were to go back.
func (m *Machine) RollbackState(s *StateRollback, reason string) (*Rollback, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	lock, err := m.lock(r)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	now, _, err := m.planState(r)
	if err != nil {
		return nil, err
	}
	if now.note != s.note || (now.giving == nil) != (s.giving == nil) {
		return nil, errors.New("something has changed meanwhile, and nothing was done: run it again")
	}
	text, err := s.note.Encode()
	if err != nil {
		return nil, err
	}
	if err := snapshot.Prepare(m.Snapshots, s.note); err != nil {
		return nil, fmt.Errorf("nothing was changed: what is to come back cannot be made ready: %w", err)
	}
	note := m.state(r, snapshot.NoteName)
	if err := hw.KeepFile(note, text, 0o600); err != nil {
		return nil, hw.Full(err)
	}
	if now.giving == nil {
		return nil, nil
	}
	out, err := m.giveUp(r, now.giving, reason)
	if err != nil {
		return nil, errors.Join(err, hw.RemoveFile(note))
	}
	return out, nil
}

// goesBack reports whether the next boot is asked to put directories back.
func (m *Machine) goesBack(r *Running) (bool, error) {
	_, err := os.Lstat(m.state(r, snapshot.NoteName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// withdrawState takes the request back, and reports whether there was one. What was made
// ready for it is removed by the next boot.
func (m *Machine) withdrawState(r *Running) (bool, error) {
	asked, err := m.goesBack(r)
	if err != nil || !asked {
		return false, err
	}
	return true, hw.RemoveFile(m.state(r, snapshot.NoteName))
}

// CancelState has directories stay that were to go back at the next start. A system that
// was given up stays so.
func (m *Machine) CancelState() error {
	r, err := m.Running()
	if err != nil {
		return err
	}
	if err := m.haveState(r); err != nil {
		return err
	}
	lock, err := m.lock(r)
	if err != nil {
		return err
	}
	defer lock.Close()
	asked, err := m.withdrawState(r)
	if err == nil && !asked {
		err = errors.New("nothing was asked for: the directories stay as they are")
	}
	return err
}

// ForgetState deletes the snapshot, and what going back has set aside.
func (m *Machine) ForgetState() error {
	r, err := m.Running()
	if err != nil {
		return err
	}
	if err := m.haveState(r); err != nil {
		return err
	}
	if r.Contract.RootFileSystem != "btrfs" {
		return fmt.Errorf("the root partition is %s, which has no snapshots", r.Contract.RootFileSystem)
	}
	lock, err := m.lock(r)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := m.withdrawState(r); err != nil {
		return err
	}
	return snapshot.Forget(m.Snapshots, path.Join(rootpart.Shared, snapshot.NoteName))
}

// Paths are the directories that go back.
func (s *StateRollback) Paths() (all []string) {
	for _, d := range s.Directories {
		all = append(all, d.Path)
	}
	return all
}
