package reset

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/unlock"
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
// Before the note the accounts are tried with the image (ownstate.TryPeople), since after
// it an account that stands in the way of one of its programs could not be changed any more.
// An error before the note is there means that nothing was changed, and the machine starts
// as usual. After it, the reset has begun, and no system starts on what is left. begun is
// whether it had before, and what is returned whether it has now.
func KeepHome(ctx context.Context, h *host.Host, begun bool) (bool, error) {
	note, err := ownstate.KeepHomeNote(h)
	if err != nil {
		return begun, err
	}
	if says := question(h, note); says != "" {
		if note, begun, err = askKeepHome(h, note, says, begun); err != nil {
			return begun, err
		}
	}
	if note.Stage == keephome.Confirmed {
		if err := beginKeepHome(ctx, h, note); err != nil {
			// No start is to end at the console for what changes nothing.
			return false, errors.Join(fmt.Errorf("nothing is deleted: %w", err), h.Store.Remove(keephome.Path))
		}
		begun = true
	}
	if note.Stage == keephome.Deleting {
		// Once more: another system may have its homes elsewhere.
		if err := ownstate.MayKeepHome(h); err != nil {
			return begun, err
		}
		if err := ownstate.DeleteAllButHome(h); err != nil {
			return begun, err
		}
		noteNobody(h, note)
		note.Stage = keephome.Deleted
		if err := ownstate.WriteKeepHome(h, note); err != nil {
			return begun, err
		}
		h.NoteSelf(journal.State, "a reset that keeps /home has deleted all else")
	}
	found, err := ownstate.Known(h)
	if err == nil && found.Has(ownstate.Own(h)) { // cut before ownstate.Carry has removed the note
		err = h.Store.Remove(keephome.Path)
	}
	return begun, err
}

// noteNobody has the system ask for an account where none was kept. The reset is worth more
// than the question.
func noteNobody(h *host.Host, note *keephome.Note) {
	if _, people := etcmerge.PeopleOf(note.People); len(people) > 0 {
		return
	}
	if err := rootpart.NoteFirstStart(h.Store, h.Contract.Version); err != nil {
		h.Log.Say("the next start does not ask for an account: %v", err)
	}
}

// question is what a person is to be asked first; "" where somebody has confirmed it, who knew
// all that there is to know.
func question(h *host.Host, note *keephome.Note) string {
	switch {
	case note == nil:
		return words.KeepHomeAsked
	case note.Stage != keephome.Deleted && note.After != keephome.LastStart(h.Journal.Written()):
		return words.KeepHomeAgain
	case note.Stage == keephome.Confirmed && ownstate.MayKeepHome(h) == nil:
		// The console cannot know who stays.
		if _, people, err := ownstate.People(h); err == nil && len(people) == 0 {
			return words.KeepHomeNobody
		}
	}
	return ""
}

// beginKeepHome writes the accounts down that are kept. After it something may be deleted.
func beginKeepHome(ctx context.Context, h *host.Host, note *keephome.Note) error {
	err := ownstate.MayKeepHome(h)
	var people []etcmerge.Person
	if err == nil {
		note.People, people, err = ownstate.People(h)
	}
	if err == nil {
		err = ownstate.TryPeople(ctx, h, note.People)
	}
	if err != nil {
		return err
	}
	note.Stage = keephome.Deleting
	if err := ownstate.WriteKeepHome(h, note); err != nil {
		return err
	}
	// It may be the only place that tells of an account of a stranger's.
	for _, entry := range keephome.Entries(people) {
		h.NoteSelf(journal.State, entry)
	}
	return nil
}

// askKeepHome asks a person, and returns the note of a reset that is confirmed. One that
// was begun and is given up leaves none by which anything is deleted.
func askKeepHome(h *host.Host, left *keephome.Note, says string, begun bool) (*keephome.Note, bool, error) {
	note := left
	if left == nil {
		note = &keephome.Note{Stage: keephome.Confirmed}
	}
	begun = begun && note.Stage != keephome.Confirmed // or nothing is deleted yet
	c, err := prompt.Open(h)
	if err != nil {
		return nil, begun, err
	}
	defer c.Close()
	err = ownstate.MayKeepHome(h)
	var people []etcmerge.Person
	if err == nil {
		_, people, err = ownstate.People(h)
	}
	if err != nil {
		return nil, begun, err
	}
	if note.Stage == keephome.Deleting {
		_, people = etcmerge.PeopleOf(note.People)
	}
	c.Print(h.Language.Text(says))
	m := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: h.Machine, Root: h.Root}}}
	if err := m.ConfirmKeepHome(c, keephome.WhoStays(h.Language, people), unlock.SecretTimeout); err != nil {
		if left != nil {
			if gone := giveUpKeepHome(h, left); gone != nil {
				return nil, begun, errors.Join(err, gone)
			}
			begun = false
		}
		h.NoteSelf(journal.State, fmt.Sprintf("a reset that keeps /home was asked for, and not confirmed: %v", err))
		c.Print(h.Language.Error(err) + "\n")
		return nil, begun, err
	}
	note.After = keephome.LastStart(h.Journal.Written())
	if note.Stage == keephome.Deleting {
		return note, begun, ownstate.WriteKeepHome(h, note)
	}
	return note, begun, nil
}

// giveUpKeepHome ends one that was begun. The accounts in its note may be nowhere else: where
// this system has no /etc of its own any more, it gets them.
func giveUpKeepHome(h *host.Host, note *keephome.Note) error {
	if note.Stage == keephome.Deleting && len(note.People) > 0 {
		found, err := ownstate.Known(h)
		if err != nil {
			return err
		}
		if !found.Has(ownstate.Own(h)) {
			note.Stage = keephome.Deleted
			return ownstate.WriteKeepHome(h, note)
		}
	}
	return h.Store.Remove(keephome.Path)
}
