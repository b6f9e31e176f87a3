// Package bootinfo is what the boot leaves for the running system and for the
// commands of the recovery console: the boot journal, and the report of this
// boot. What an entry of the journal is, and what happens to a journal that
// grows, is boot/journal's.
//
// It refuses to make the journal's directory: where there is none, the root
// partition is closed, and there is nothing to read or to write. It refuses to
// write the journal in place: a cut leaves it with the new entry, or without it.
package bootinfo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/statefiles"
)

// A Place says where things are.
type Place struct {
	// Directories that may have the journal; the first that is there has it.
	Directories []string
	Report      string // of this boot
	BootID      string // the kernel's file
}

// Linux is where they are in the recovery console and in the running system.
func Linux() Place {
	return Place{
		Directories: []string{statefiles.AtConsole, statefiles.Directory},
		Report:      statefiles.RunDirectory + "/" + ReportName, BootID: "/proc/sys/kernel/random/boot_id",
	}
}

// FirstStart is the file by which a boot that has made the root partition, or a reset that
// has left nobody's account there, says so to the running system. It has the version that
// was started then: an image that does not ask leaves it there, and a later one that does
// has no business with it.
const FirstStart = "first-start"

// ErrClosed says that there is no journal to be had.
var ErrClosed = errors.New("the boot journal is on the root partition, which is not open")

func (p Place) directory() (string, error) {
	for _, f := range p.Directories {
		if info, err := os.Stat(f); err == nil && info.IsDir() {
			return f, nil
		}
	}
	return "", ErrClosed
}

// Journal returns the entries, oldest first; ErrClosed where the root partition
// is closed.
func (p Place) Journal() ([]journal.Entry, error) {
	directory, err := p.directory()
	if err != nil {
		return nil, err
	}
	return ReadJournal(directory)
}

// Note appends an entry, as of this boot. Where the root partition is closed it
// does nothing: what the commands do without it must not depend on it.
func (p Place) Note(e journal.Entry) error {
	directory, err := p.directory()
	if err != nil {
		return nil
	}
	if id, err := os.ReadFile(p.BootID); err == nil {
		e.Boot = strings.TrimSpace(string(id))
	}
	return AppendJournal(directory, e)
}

// ErrBusy says that another program changes the slots just now.
var ErrBusy = errors.New("an update is at work: try again when it is done")

// Alone keeps others from changing the slots until release is called. Where the
// root partition is closed nobody else can be at work.
func (p Place) Alone() (release func(), err error) {
	directory, err := p.directory()
	if err != nil {
		return func() {}, nil
	}
	f, err := os.OpenFile(filepath.Join(directory, statefiles.LockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock the slots: %w", err)
	}
	return func() { f.Close() }, nil
}
