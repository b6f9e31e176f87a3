package recovery

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// ErrBegun says that a reset has begun and is not complete: the data may be lost already, and
// nothing but another reset goes on from there.
var ErrBegun = errors.New("the reset has begun and is not complete: `reset` once more at the recovery console does the rest")

// Reset wipes the root partition, and with it the user's data, this machine's
// Secure Boot keys and the TPM's record. The slots stay: the machine then makes
// itself new from the system that it has.
//
// The order: the keyslots go first, since without them the data is noise; then
// the TPM's index, which only the header names; then the header; then the
// medium is told, and the ESP loses what the first boots left. Cut after the
// first write, nothing opens the volume any more; cut before the header is
// gone, the boot ends here again, and so does one whose ESP still remembers:
// this command then does all of it once more.
func (m *Machine) Reset(c hw.Console) error { return m.ResetWithin(c, 0) }

// ResetWithin is Reset for who may not be there: it waits for an answer as long as limit,
// or for ever with 0. No answer is a refusal. Any error but ErrBegun means that nothing was
// changed.
func (m *Machine) ResetWithin(c hw.Console, limit time.Duration) error {
	if err := m.find(); err != nil {
		return err
	}
	partition, err := layout.Find(m.Table, layout.Root)
	if err != nil {
		return err
	}
	_, size := m.Table.Bytes(partition)
	c.Print(c.Language().Say(words.ResetWipes, m.Disk.Name, m.Disk.Model, m.Disk.Serial, size>>20))
	if err := m.confirmByName(c, limit); err != nil {
		return err
	}
	if err := m.Lock(); err != nil {
		return err
	}
	// One that cannot be read names no index; it is wiped all the same.
	_, lock, _ := rootpart.Look(m.Disks, m.Disk, m.Table)
	f, err := m.root()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.wipe(c, f, lock, size); err != nil {
		return fmt.Errorf("%w: %w", ErrBegun, err)
	}
	c.Print(c.Language().Text(words.ResetDone))
	return nil
}

// wipe does it. It begins with its first line.
func (m *Machine) wipe(c hw.Console, f hw.File, lock *rootlock.Lock, size int64) error {
	if err := rootlock.EraseKeys(m.Random, f); err != nil {
		return err
	}
	c.Print(c.Language().Text(words.ResetKeysGone))
	if err := m.release(lock); err != nil {
		c.Print(c.Language().Say(words.ResetRecord, err))
	}
	if err := rootlock.EraseHeader(f); err != nil {
		return err
	}
	if err := m.Discard(f, rootlock.HeaderArea, size-rootlock.HeaderArea); err != nil {
		c.Print(c.Language().Say(words.ResetNoDiscard, err))
	}
	if err := m.WriteESP(clearESP); err != nil {
		return fmt.Errorf("the root partition is wiped; the ESP still knows of it, so `reset` again once it can be written (or after `esp-rebuild`): %w", err)
	}
	return nil
}

// release frees the TPM's index, those that nothing was ever bound to, and, first, what
// a replacement of the machine secret has left when it was cut: that is known by the
// index which the header names.
func (m *Machine) release(lock *rootlock.Lock) error {
	chip, err := m.TPM.Open()
	if errors.Is(err, tpm.ErrAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	defer chip.Close()
	err = rootpart.Binding{TPM: chip}.Clear()
	if lock != nil && lock.Sealed != nil && lock.Sealed.Kind == policy.KindNV {
		if record, rerr := chip.ReadRecord(lock.Sealed); rerr == nil && !record.Provisional() {
			err = errors.Join(err, rootpart.DropIndexes(chip, record.Volume, lock.Sealed))
		}
		if gone := chip.Undefine(lock.Sealed.NVIndex); !errors.Is(gone, tpm.ErrIndexMissing) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// clearESP removes what says that this machine was ever in use, and answers for a first
// start: the next would take those that somebody has put there while the system ran.
func clearESP(dir hw.ESPDir) error {
	names, err := dir.List(firstboot.Directory)
	if err != nil {
		return notMissing(err)
	}
	for _, n := range names {
		_, pending := firstboot.Count(n.Name)
		if n.Directory || !pending && !lastgood.Is(n.Name) && !strings.EqualFold(n.Name, path.Base(answers.OnESP)) {
			continue
		}
		if err := dir.Remove(path.Join(firstboot.Directory, n.Name)); err != nil {
			return err
		}
	}
	return dir.SyncDir(firstboot.Directory)
}
