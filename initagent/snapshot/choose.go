package snapshot

import (
	"errors"
	"fmt"
	"strings"
)

// A Case is what there is when somebody asks to go back.
type Case struct {
	FileSystem string  // of the root partition
	Record     *Record // or nil
	Aside      *Aside  // or nil
	Runs       System  // what has run last on what there is
	Next       System  // what will run on what comes back
}

// A Choice is what they would get.
type Choice struct {
	Note        Note
	Directories []string
	// From is where what they get lies, below the root partition.
	From string
}

// Choose decides whether somebody can go back to the snapshot, or on what was set aside,
// where the system that the snapshot is of has run since. An error says why not, and what
// can be done.
func Choose(c Case) (*Choice, error) {
	switch {
	case c.FileSystem != "btrfs":
		return nil, fmt.Errorf("the root partition is %s, which has no snapshots: `ota rollback` goes back to the other system, with its own /etc; other directories come from a backup. Only a machine that is set up by an image with RootPartitionFormat=btrfs takes any", c.FileSystem)
	case c.Aside != nil && c.Next.is(c.Runs):
		return &Choice{Note: Note{System: c.Next.Root, Version: c.Next.Version, Of: c.Aside.Time, Undo: true, From: c.Runs.Version}, Directories: c.Aside.Directories, From: c.Aside.Where}, nil
	case c.Aside != nil:
		return nil, fmt.Errorf("what was set aside when somebody went back before is in /run/state/%s still: copy what is wanted of it, remove /run/state/%s, and try again", c.Aside.Where, asideFile)
	case c.Record == nil:
		return nil, errors.New("there is no snapshot: one is taken when a release is staged, and none has been since this machine takes any. `ota rollback` without --state goes back to the other system")
	case c.Record.Missing == errPlain.Error():
		return nil, fmt.Errorf("there is no snapshot: %w. They stay as they are until the machine is set up again (`reset` at the recovery console, after a backup)", errPlain)
	case c.Record.Missing != "":
		return nil, fmt.Errorf("there is no snapshot from before version %s was tried: %s", c.Record.For, c.Record.Missing)
	case !c.Record.System.is(c.Next):
		return nil, fmt.Errorf("the snapshot is of version %s, and version %s would run on it: it would find what it does not expect", c.Record.System.Version, c.Next.Version)
	}
	return &Choice{Note: Note{System: c.Next.Root, Version: c.Next.Version, Of: c.Record.Taken, From: c.Runs.Version}, Directories: c.Record.Directories, From: Before}, nil
}

// Place is where a directory of state.conf lies, below the root partition, in its own
// place or in another one.
func (c *Choice) Place(directory string) (now, then string) {
	return at("bind", directory), at(c.From, directory)
}

// Names lists directories for people.
func Names(directories []string) string { return strings.Join(directories, ", ") }
