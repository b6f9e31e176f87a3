package recoverykey

import (
	"errors"
	"io/fs"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// NoteFile is where the root partition has the note.
const NoteFile = rootpart.Shared + "/" + keynote.Name

// Noted reads the note. One that is not there, or cannot be read, has nothing to say: no
// start depends on it.
func Noted(store hw.Store) keynote.Note {
	text, err := store.Read(NoteFile, keynote.MaxSize)
	if err != nil {
		return keynote.Note{}
	}
	n, err := keynote.Parse(text)
	if err != nil {
		return keynote.Note{}
	}
	return n
}

// Note writes it, or takes it away where it has nothing to say.
func Note(store hw.Store, n keynote.Note) error {
	if n.Nothing() {
		if _, err := store.Read(NoteFile, 0); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return store.Remove(NoteFile)
	}
	text, err := n.Encode()
	if err == nil {
		err = rootpart.MakeShared(store)
	}
	if err != nil {
		return err
	}
	return store.Keep(NoteFile, text)
}

// Adding returns the note for the time before a key is added to those of a volume: a cut
// leaves the one key that there is. Where there are several, nobody knows which counts, and
// all stay.
func Adding(n keynote.Note, lock *rootlock.Lock) keynote.Note {
	n.Keep, n.Drop = "", ""
	if len(lock.Recoveries) == 1 {
		n.Keep = lock.Recoveries[0].ID()
	}
	return n
}

// Showing returns the note for the time in which a key with this ID, which was added, is on
// the screen: from then on somebody may have written it down.
func Showing(n keynote.Note, id string) keynote.Note {
	if n.Void = true; n.Keep == "" {
		n.Drop = id
	}
	return n
}

// Confirmed notes that the recovery key with this ID was typed back, and counts from then
// on: all others go.
func Confirmed(store hw.Store, id string) error { return Note(store, keynote.Note{Keep: id}) }

// Used notes that somebody has typed the recovery key with this ID: they have it. Where
// another one is being added or removed, the one that was typed is kept from then on.
func Used(store hw.Store, id string) error {
	n := Noted(store)
	before := n
	n.Unconfirmed, n.Shown = false, 0
	switch {
	case n.Drop != "":
		n.Void = n.Void && n.Drop != id
		n.Keep, n.Drop = id, ""
	case n.Keep != id: // what was shown last is what was typed, or is gone
		n.Void = false
		if n.Keep != "" {
			n.Keep = id
		}
	}
	if n == before {
		return nil
	}
	return Note(store, n)
}
