package unlock

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/vault"
)

const (
	// presence is how long somebody has to say that they are there to see a new recovery
	// key, where the machine itself offers one; who has asked for it has SecretTimeout.
	presence = 15 * time.Second

	offered = `
NOBODY HAS SHOWN TO HAVE WRITTEN THIS MACHINE'S RECOVERY KEY DOWN. Without it all data
is lost when the TPM does not open the machine: after a firmware update, with a new
mainboard. Press Enter to have a new one made and shown (or wait 15 seconds). `

	wanted = `
A NEW RECOVERY KEY: this was asked for from the running system, with
` + "`halogenctl recovery-key new`" + `. The one that you have opens until the new one is confirmed.
If it was not you who asked, type n: somebody else may be root there.
Press Enter to have it made and shown (or wait two minutes for nothing to be done). `
)

// A keyChange makes a new recovery key on a machine that the TPM has opened.
type keyChange struct {
	*host.Host
	note      keynote.Note
	f         hw.File
	volumeKey []byte
}

// NewKey makes a new recovery key, shows it, and has it confirmed, where the note says so,
// and finishes what a cut has left of that. Nobody sees a key who does not press a key
// first, and it was the running system, from the encrypted root partition, or the first
// boot, that asked for one.
//
// The order: the note says that the key before counts; the new one is added, shown and
// confirmed; the note says that it counts; all others go, and the note after them. Cut
// anywhere, the key that the note names opens, and is the only one at the next start.
func NewKey(h *host.Host) (err error) {
	k := &keyChange{Host: h, note: recoverykey.Noted(h.Store)}
	if k.f, err = h.Disks.OpenPartition(h.Disk, layout.RootNumber, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.f.Close()) }()
	if err := k.settle(); err != nil || !k.note.Due() {
		return err
	}
	if len(h.Lock.Recoveries) != 1 {
		return vault.ErrTwoKeys
	}
	asked := k.note.Wanted
	k.note.Wanted = false
	if k.note.Unconfirmed {
		k.note.Shown++
	}
	k.note.Keep = h.Lock.Recoveries[0].Keyslot + 1
	// Before anybody is asked: what is asked for is asked once.
	if err := recoverykey.Note(h.Store, k.note); err != nil {
		return err
	}
	c, err := h.Person.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return errors.Join(k.replace(c, asked), k.settle())
}

// settle leaves the recovery key that counts alone, where the note names one.
func (k *keyChange) settle() error {
	if k.note.Keep == 0 {
		return nil
	}
	keyslot := k.note.Keep - 1
	if slices.ContainsFunc(k.Lock.Recoveries, func(r vault.Recovery) bool { return r.Keyslot == keyslot }) && len(k.Lock.Recoveries) > 1 {
		if err := k.Lock.RemoveRecoveries(k.Random, k.f, keyslot); err != nil {
			return err
		}
	}
	k.note.Keep = 0
	return recoverykey.Note(k.Store, k.note)
}

// replace adds a key and has it confirmed. Whatever it returns, the note says which counts.
func (k *keyChange) replace(c hw.Console, asked bool) error {
	question, timeout := offered, presence
	if asked {
		question, timeout = wanted, SecretTimeout
	}
	answer, err := c.Ask(question, false, timeout)
	switch {
	case errors.Is(err, hw.ErrNobody):
		return nil
	case err != nil:
		return err
	case len(answer) > 0:
		c.Print("The recovery key stays as it is.\n")
		return nil
	}
	fresh, err := luks2.NewRecoveryKey(k.Random)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	if k.volumeKey, err = k.OpenByTPM(k.Secret); err != nil {
		return err
	}
	defer luks2.Wipe(k.volumeKey)
	memory, err := k.Memory()
	if err != nil {
		return err
	}
	cpus := runtime.NumCPU()
	kdf := luks2.Argon2id(rootpart.KeyMemory(memory, cpus), cpus)
	if err := k.Lock.AddRecovery(k.Random, k.f, k.volumeKey, k.Secret, &fresh, kdf); err != nil {
		return err
	}
	confirmed, err := recoverykey.Confirm(c, k.Random, &fresh, recoverykey.Text{Title: "NEW RECOVERY KEY", Later: "the one before stays"}, SecretTimeout)
	if err != nil || !confirmed {
		return err
	}
	keyslot, err := k.Lock.RecoveryKeyslot(k.f, &fresh, rootpart.KeyLimit(memory)) // by what opens
	if err != nil {
		return err
	}
	k.note = keynote.Note{Keep: keyslot + 1}
	if err := recoverykey.Note(k.Store, k.note); err != nil {
		k.note.Keep = k.before(keyslot) // the note before is in force
		return fmt.Errorf("the new recovery key was confirmed and cannot be put in force: the one before stays: %w", err)
	}
	c.Print("The new recovery key is confirmed. The one before opens nothing any more.\n")
	return nil
}

// before is the note's value for the key that was there before the one of a keyslot.
func (k *keyChange) before(fresh int) int {
	for _, r := range k.Lock.Recoveries {
		if r.Keyslot != fresh {
			return r.Keyslot + 1
		}
	}
	return 0
}
