package recovery

import (
	"errors"
	"fmt"
	"runtime"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// RecoveryKey replaces the recovery key.
//
// The order: the note says that the old key counts, or, where there are several, which one
// is new; that one is added and shown, two groups of it are typed back, the note says that
// it counts, and only then the old ones are removed. Cut anywhere, the next start that the
// TPM opens removes what does not count.
func (m *Machine) RecoveryKey(c hw.Console) error {
	open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	lock, err := m.locked()
	if err != nil {
		return err
	}
	memory, err := m.Memory()
	if err != nil {
		return err
	}
	fresh, err := luks2.NewRecoveryKey(m.Random)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	f, err := m.root()
	if err != nil {
		return err
	}
	defer f.Close()
	cpus := runtime.NumCPU()
	kdf := luks2.Argon2id(rootpart.KeyMemory(memory, cpus), cpus)
	before := recoverykey.Noted(m.Store)
	note := recoverykey.Adding(before, lock)
	if err := recoverykey.Note(m.Store, note); err != nil {
		return err
	}
	if err := lock.AddRecovery(m.Random, f, open.VolumeKey, open.Secret, &fresh, kdf); err != nil {
		return errors.Join(err, recoverykey.Note(m.Store, before))
	}
	if err = recoverykey.Note(m.Store, recoverykey.Showing(note, lock.Added())); err == nil {
		err = m.showAndCheck(c, &fresh)
	}
	var keyslot int
	if err == nil { // by what opens, and not by what was meant to
		keyslot, err = lock.RecoveryKeyslot(f, &fresh, rootpart.KeyLimit(memory))
	}
	if err == nil { // no start to come keeps another one, or offers one
		err = recoverykey.Confirmed(m.Store, lock.ID(keyslot))
	}
	if err != nil {
		if failed := m.takeBack(f, lock, &fresh, rootpart.KeyLimit(memory)); failed != nil {
			return errors.Join(err, failed) // the next start does it
		}
		return errors.Join(err, recoverykey.Note(m.Store, before))
	}
	if err := lock.RemoveRecoveries(m.Random, f, keyslot); err != nil {
		return fmt.Errorf("the new recovery key is good; the old one may be, too: %w", err)
	}
	if err := recoverykey.Note(m.Store, keynote.Note{}); err != nil {
		return fmt.Errorf("the new recovery key is the only one; the next start notes it: %w", err)
	}
	c.Print(c.Language().Text(words.ConsoleOnlyKey))
	return nil
}

// showAndCheck shows the key and has two groups of it typed back.
func (m *Machine) showAndCheck(c hw.Console, fresh *luks2.RecoveryKey) error {
	confirmed, err := recoverykey.Confirm(c, m.Random, fresh, recoverykey.Text{Title: c.Language().Text(words.KeyNameNew), Later: c.Language().Text(words.ConsoleOldStays)}, 0)
	if err == nil && !confirmed {
		err = errors.New("the new recovery key was not typed back: the old one stays")
	}
	return err
}

// takeBack removes the new key again, and leaves the ones before.
func (m *Machine) takeBack(f hw.File, lock *rootlock.Lock, fresh *luks2.RecoveryKey, limit uint64) error {
	keyslot, err := lock.RecoveryKeyslot(f, fresh, limit)
	if err == nil {
		err = lock.RemoveRecovery(m.Random, f, keyslot)
	}
	if err != nil {
		return fmt.Errorf("the new recovery key was not taken away again: %w", err)
	}
	return nil
}
