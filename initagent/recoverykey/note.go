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

// Used notes that somebody has typed the recovery key: they have it.
func Used(store hw.Store) error {
	n := Noted(store)
	if !n.Unconfirmed {
		return nil
	}
	n.Unconfirmed, n.Shown = false, 0
	return Note(store, n)
}
