package recoverykey

import (
	"errors"
	"io/fs"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/initagent/hw"
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

// Confirmed notes that the recovery key with this ID was typed back, and counts from then
// on: all others go.
func Confirmed(store hw.Store, id string) error { return Note(store, keynote.Note{Keep: id}) }

// Used notes that somebody has typed the recovery key with this ID: they have it. Where
// another one is being added or removed, the one that was typed is kept from then on.
func Used(store hw.Store, id string) error {
	n := Noted(store)
	before := n
	n.Unconfirmed, n.Shown = false, 0
	if n.Keep != id { // what was shown last is what was typed, or is gone
		n.Void = false
	}
	if n.Keep != "" {
		n.Keep = id
	}
	if n == before {
		return nil
	}
	return Note(store, n)
}
