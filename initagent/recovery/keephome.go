package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// ResetKeepingHome has the next start delete what was changed on this machine, /home
// excepted: /etc of each system, and the directories that they share. That start has the
// image at hand, without which nobody can say which accounts are a person's.
//
// It is one write of a note, of which a cut leaves the note or none.
func (m *Machine) ResetKeepingHome(c hw.Console) error {
	open, err := m.kept()
	if err != nil {
		return err
	}
	open.Wipe()
	if m.Disk.ReadOnly {
		return errors.New("the disk takes no writes: nothing can be deleted")
	}
	note, err := m.keepHomeNote()
	if err != nil {
		return err
	}
	who := ""
	if note.Stage == keephome.Deleting {
		_, people := etcmerge.PeopleOf(note.People)
		who = keephome.WhoStays(words.English, people)
	}
	if err := m.ConfirmKeepHome(c, who, 0); err != nil {
		return err
	}
	text, err := note.Encode()
	if err == nil {
		err = m.Store.MakeDirectory(rootpart.OwnDirectory, 0o700)
	}
	if err == nil {
		err = m.Store.Keep(keephome.Path, text)
	}
	if err != nil {
		return fmt.Errorf("nothing is deleted: %w", err)
	}
	c.Print("It is noted. `exit` starts again: that start deletes all but /home, and asks no more.\n")
	return nil
}

// keepHomeNote is what is to be noted. One that was begun keeps the accounts that are in its
// note: they may be nowhere else.
func (m *Machine) keepHomeNote() (*keephome.Note, error) {
	log, err := m.read(bootjournal.File, bootjournal.MaxSize)
	if err != nil {
		return nil, err
	}
	text, err := m.read(keephome.Path, keephome.MaxSize)
	if err != nil {
		return nil, err
	}
	note := &keephome.Note{Stage: keephome.Confirmed}
	if begun, err := keephome.Parse(text); err == nil && begun.Stage != keephome.Confirmed {
		note.Stage, note.People = keephome.Deleting, begun.People
	}
	note.After = keephome.LastStart(journal.Parse(log))
	return note, nil
}

// read reads a file; one that is not there, or is no such file, is empty.
func (m *Machine) read(name string, limit int64) ([]byte, error) {
	text, err := m.Store.Read(name, limit)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, hw.ErrUnfit) {
		return nil, nil
	}
	return text, err
}

// ConfirmKeepHome has a person at the machine type its name, and says before what goes and
// what stays; who says which accounts, page by page. It waits as long as limit, or for ever
// with 0.
func (m *Machine) ConfirmKeepHome(c hw.Console, who string, limit time.Duration) error {
	shared, err := m.Store.Names(upper.Bind)
	if err != nil {
		return err
	}
	if !slices.Contains(shared, keephome.Home) {
		return fmt.Errorf("the root partition has no /home to keep (state.conf has no line \"bind /home\"): `reset` alone wipes everything; %s shows what is there", m.Path(rootpart.Directory))
	}
	if err := m.find(); err != nil {
		return err
	}
	c.Print(c.Language().Text(words.KeepHomeDeletes))
	pages := keephome.Pages(who)
	for i, page := range pages {
		if i > 0 {
			if _, err := c.Ask(c.Language().Say(words.PageOf, i, len(pages)), false, limit); err != nil {
				return err
			}
		}
		c.Print(page)
	}
	return m.confirmByName(c, limit)
}

// confirmByName asks for the machine's name to be typed; anything else is a refusal.
func (m *Machine) confirmByName(c hw.Console, limit time.Duration) error {
	answer, err := c.Ask(c.Language().Say(words.ResetName, m.Contract.ImageID), false, limit)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(answer)) != m.Contract.ImageID {
		return errRefused
	}
	return nil
}
