package reset

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

// KeepHome deletes all but /home, and what is the machine's own, once somebody has typed the
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
// as usual. After it, the reset has begun, and no system starts on what is left. begun is
// whether it had before, and what is returned whether it has now.
func KeepHome(h *host.Host, begun bool) (bool, error) {
	note, err := ownstate.KeepHomeNote(h)
	if err != nil {
		return begun, err
	}
	if note == nil || note.Stage != keephome.Deleted && note.After != keephome.LastStart(h.Journal.Written()) {
		if note, begun, err = askKeepHome(h, note, begun); err != nil {
			return begun, err
		}
	}
	if note.Stage == keephome.Confirmed {
		if err := beginKeepHome(h, note); err != nil {
			// No start is to end at the console for what changes nothing.
			return false, errors.Join(fmt.Errorf("nothing is deleted: %w", err), h.Store.Remove(keephome.Path))
		}
		begun = true
	}
	if note.Stage == keephome.Deleting {
		if err := ownstate.DeleteAllButHome(h); err != nil {
			return begun, err
		}
		note.Stage = keephome.Deleted
		if err := ownstate.WriteKeepHome(h, note); err != nil {
			return begun, err
		}
	}
	found, err := ownstate.Known(h)
	if err == nil && found.Has(ownstate.Own(h)) { // cut before ownstate.Carry has removed the note
		err = h.Store.Remove(keephome.Path)
	}
	return begun, err
}

// beginKeepHome writes the accounts down that are kept. After it something may be deleted.
func beginKeepHome(h *host.Host, note *keephome.Note) error {
	err := ownstate.MayKeepHome(h)
	if err == nil {
		note.People, _, err = ownstate.People(h)
	}
	if err != nil {
		return err
	}
	note.Stage = keephome.Deleting
	return ownstate.WriteKeepHome(h, note)
}

// askKeepHome asks a person, and returns the note of a reset that is confirmed. One that
// was begun and is given up leaves no note.
func askKeepHome(h *host.Host, left *keephome.Note, begun bool) (*keephome.Note, bool, error) {
	c, err := h.Person.Open()
	if err != nil {
		return nil, begun, err
	}
	defer c.Close()
	note, says := &keephome.Note{Stage: keephome.Confirmed}, keepHomeAsked
	if left != nil {
		note, says = left, keepHomeAgain
	}
	err = ownstate.MayKeepHome(h)
	var people []etcmerge.Person
	if err == nil {
		_, people, err = ownstate.People(h)
	}
	if err != nil {
		return nil, begun && note.Stage != keephome.Confirmed, err
	}
	if note.Stage == keephome.Deleting {
		_, people = etcmerge.PeopleOf(note.People)
	}
	c.Print(says)
	m := &recovery.Machine{Host: host.Host{Machine: h.Machine, Root: h.Root}}
	if err := m.ConfirmKeepHome(c, ownstate.WhoStays(people), unlock.SecretTimeout); err != nil {
		if left != nil {
			if gone := h.Store.Remove(keephome.Path); gone != nil {
				return nil, begun, errors.Join(err, gone)
			}
			begun = false
		}
		c.Print(fmt.Sprintf("%v\n", err))
		return nil, begun, err
	}
	note.After = keephome.LastStart(h.Journal.Written())
	if note.Stage == keephome.Deleting {
		return note, begun, ownstate.WriteKeepHome(h, note)
	}
	return note, begun, nil
}
