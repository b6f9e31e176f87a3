package agent

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/unlock"
)

// keepHomeAsked and keepHomeAgain say to the person in front of the screen what this is.
const (
	keepHomeAsked = `
A RESET THAT KEEPS /home: this was asked for from the running system,
with ` + "`halogenctl reset --keep-home`" + `. If it was not you who did, press Enter: somebody
else may be root there. Then nothing is changed, and the machine starts as usual.
`
	keepHomeAgain = `
A RESET THAT KEEPS /home was begun on this machine and not completed, and a system
has run since. Going on deletes what was made meanwhile, too. An empty line gives it up:
what is deleted already is gone, and the machine starts with the rest.
`
)

// observeKeepHome looks, once, whether a reset that keeps /home was begun.
func (a *Agent) observeKeepHome() {
	if a.facts.KeepHomeAsked && a.State.Trial {
		a.Log.Say("a reset that keeps /home was asked for, and is not done while a version is on trial: ask again once it is kept")
		a.facts.KeepHomeAsked = false
	}
	if a.homeLooked {
		return
	}
	a.homeLooked = true
	note, err := ownstate.KeepHomeNote(&a.Host)
	a.facts.KeepHomeBegun = note != nil || err != nil
}

// keepHome deletes all but /home, and what is the machine's own, once somebody has typed the
// machine's name: here, where the running system has asked for it, or at the console.
//
// The order: a note has the accounts that are kept, and is on the disk; then all else goes;
// then the note says so. ownstate.Carry gives this system an /etc with the accounts and removes
// the note, before any system runs. Cut before the note is written nothing was changed.
// Cut after it, each start comes here again and goes on: what is deleted twice is gone, and
// the accounts are those of the note. Cut once it says that all is gone, nothing is deleted
// any more, and ownstate.Carry is done as for any first start that was cut. Where another system
// has run in between, of a release that does not know the note, a person is asked again.
//
// An error before the note is there means that nothing was changed, and the machine starts
// as usual. After it, the fact KeepHomeBegun holds, and no system starts on what is left.
func (a *Agent) keepHome() error {
	note, err := ownstate.KeepHomeNote(&a.Host)
	if err != nil {
		return err
	}
	if note == nil || note.Stage != keephome.Deleted && note.After != keephome.LastStart(a.Journal.Written()) {
		if note, err = a.askKeepHome(note); err != nil {
			return err
		}
	}
	if note.Stage == keephome.Confirmed {
		if note.People, _, err = ownstate.People(&a.Host); err != nil {
			return err
		}
		note.Stage = keephome.Deleting
		if err := ownstate.WriteKeepHome(&a.Host, note); err != nil {
			return fmt.Errorf("nothing is deleted: %w", err)
		}
		a.facts.KeepHomeBegun = true
	}
	if note.Stage == keephome.Deleting {
		if err := ownstate.DeleteAllButHome(&a.Host); err != nil {
			return err
		}
		note.Stage = keephome.Deleted
		if err := ownstate.WriteKeepHome(&a.Host, note); err != nil {
			return err
		}
	}
	found, err := ownstate.Known(&a.Host)
	if err == nil && found.Has(ownstate.Own(&a.Host)) { // cut before ownstate.Carry has removed the note
		err = a.Store.Remove(keephome.Path)
	}
	return err
}

// askKeepHome asks a person, and returns the note of a reset that is confirmed. One that
// was begun and is given up leaves no note.
func (a *Agent) askKeepHome(begun *keephome.Note) (*keephome.Note, error) {
	c, err := a.Person.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	note, says := &keephome.Note{Stage: keephome.Confirmed}, keepHomeAsked
	if begun != nil {
		note, says = begun, keepHomeAgain
	}
	_, people, err := ownstate.People(&a.Host)
	if err != nil {
		return nil, err
	}
	if note.Stage == keephome.Deleting {
		_, people = etcmerge.PeopleOf(note.People)
	}
	c.Print(says)
	m := &recovery.Machine{Host: host.Host{Machine: a.Machine, Root: a.Root}}
	if err := m.ConfirmKeepHome(c, ownstate.WhoStays(people), unlock.SecretTimeout); err != nil {
		if begun != nil {
			if gone := a.Store.Remove(keephome.Path); gone != nil {
				return nil, errors.Join(err, gone)
			}
			a.facts.KeepHomeBegun = false
		}
		c.Print(fmt.Sprintf("%v\n", err))
		return nil, err
	}
	note.After = keephome.LastStart(a.Journal.Written())
	if note.Stage == keephome.Deleting {
		return note, ownstate.WriteKeepHome(&a.Host, note)
	}
	return note, nil
}
