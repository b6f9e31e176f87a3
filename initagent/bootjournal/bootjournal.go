// Package bootjournal writes the boot journal from the initramfs. What an entry is, and
// what happens to a journal that grows, is boot/journal's.
//
// It refuses to replace a journal that cannot be read: it says what has failed.
package bootjournal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

const (
	// File is where the root partition has it.
	File = rootpart.Shared + "/" + journal.Name
	// MaxSize bounds what is read of a journal in bytes. It is rewritten at
	// journal.MaxSize; what is so much larger is none.
	MaxSize = 16 << 20
)

// A Journal has the entries of a boot that wait for a place.
type Journal struct {
	hw.Machine
	// Root is where the initramfs is.
	Root string
	// Ready reports whether there is a place for files: the root partition, or what a
	// machine without one has in memory.
	Ready   func() bool
	waiting []journal.Entry
}

// Note puts an entry into the boot journal: at once where the root partition is
// open, or else as soon as it is. One that cannot be written is not worth a boot.
func (j *Journal) Note(e journal.Entry) {
	j.add(e)
	if !j.Ready() {
		return
	}
	if err := j.write(); err != nil {
		j.Log.Say("the boot journal was not written: %v", err)
	}
}

// Append is Note where nothing goes on unless the entry is written. One that is not
// waits for the next.
func (j *Journal) Append(e journal.Entry) error {
	j.add(e)
	return j.write()
}

func (j *Journal) add(e journal.Entry) {
	e.Time, e.Boot = j.Now(), j.bootID()
	j.waiting = append(j.waiting, e)
}

func (j *Journal) write() error {
	text, err := j.text()
	if err != nil {
		return err // and is not replaced: it says what failed
	}
	for _, e := range j.waiting {
		if text, err = journal.Append(text, e); err != nil {
			return err
		}
	}
	if err := rootpart.MakeShared(j.Store); err != nil {
		return err
	}
	if err := j.Store.Keep(File, text); err != nil {
		return err
	}
	j.waiting = nil
	return nil
}

// Entries are the journal's, oldest first, and those that wait.
func (j *Journal) Entries() []journal.Entry {
	var entries []journal.Entry
	if j.Ready() {
		text, err := j.text()
		if err != nil {
			j.Log.Say("the boot journal cannot be read: %v", err)
		}
		entries = journal.Parse(text)
	}
	return append(entries, j.waiting...)
}

// Written are the journal's entries alone, oldest first; none where it cannot be read.
func (j *Journal) Written() []journal.Entry {
	text, err := j.text()
	if err != nil {
		return nil
	}
	return journal.Parse(text)
}

// Failures are the versions that are not taken again. That the journal cannot be
// read does not mean that nothing has failed.
func (j *Journal) Failures() (map[contract.Version]string, error) {
	text, err := j.text()
	if err != nil {
		return nil, fmt.Errorf("which versions have failed is not known: %w: %w", esp.ErrUnread, err)
	}
	return journal.Failures(append(journal.Parse(text), j.waiting...)), nil
}

// text reads the journal. What is not a journal at all begins again.
func (j *Journal) text() ([]byte, error) {
	text, err := j.Store.Read(File, MaxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, hw.ErrUnfit):
		j.Log.Say("the boot journal begins again: %v", err)
		return nil, nil
	}
	return text, err
}

// bootID is the kernel's name for this boot.
func (j *Journal) bootID() string {
	text, err := os.ReadFile(filepath.Join(j.Root, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
