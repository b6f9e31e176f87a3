package recovery

import (
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// NewSecret makes a new machine secret, has the TPM and the recovery key open the root
// partition by that one, and accepts the machine as it is now, as Reseal does. With keys
// it then replaces the Secure Boot keys as well. What a cut leaves is said in package
// rootpart; the recovery key opens all the time.
func (m *Machine) NewSecret(c hw.Console, keys bool) error {
	open, err := m.kept()
	if err != nil {
		return err
	}
	open.Wipe()
	lock, err := m.locked()
	if err != nil {
		return err
	}
	if keys && rootpart.KeysUnfinished(m.Store, lock) {
		return m.goOnWithKeys(c)
	}
	if len(lock.Recoveries) != 1 {
		return rootlock.ErrTwoKeys
	}
	check := func(files fs.FS) error {
		return rootpart.CheckSystems(files, m.Contract, m.Table, rootpart.Change{Keys: keys})
	}
	if err := m.ReadESP(check); err != nil {
		return err
	}
	what := "a new machine secret"
	if keys {
		what += " and new Secure Boot keys"
	}
	return m.accepting(c, false, "Make "+what+", and accept this machine as it is now? The recovery key stays.\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware).", func(c hw.Console, a *acceptance) error {
		if !keys {
			return m.newSecret(c, a, nil)
		}
		fresh, err := m.makeKeys(c, a)
		if err != nil {
			return err
		}
		defer fresh.Wipe()
		if err := m.newSecret(c, a, fresh); err != nil {
			return err
		}
		if err := m.finishKeys(c, a); err != nil {
			return fmt.Errorf("the new machine secret is in force; of the Secure Boot keys: %w", err)
		}
		return nil
	})
}

func (m *Machine) newSecret(c hw.Console, a *acceptance, keys *rootpart.NewKeys) error {
	if err := a.binding.MaySucceed(a.lock, a.open.Secret, a.record); err != nil {
		return err
	}
	f, err := m.root()
	if err != nil {
		return err
	}
	key, err := m.typedAgain(c, f, a)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	defer key.Wipe()
	fresh, err := policy.NewSecret(m.Random)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	r := &rootpart.Replacement{Old: a.open.Secret, Fresh: fresh, Key: key, Keys: keys}
	noted, changed, err := a.binding.ReplaceSecret(m.volume(a.lock, a.open), r, a.record, a.boots)
	switch {
	case err != nil && changed:
		return errors.Join(fmt.Errorf("%w. Nothing is lost: `unlock` again, which finishes it or takes it back", err), m.Lock())
	case err != nil:
		return err
	}
	a.noted = noted
	*a.open.Secret = *fresh
	if err := m.Keeper.Keep(a.open); err != nil {
		return errors.Join(fmt.Errorf("the new machine secret is in force: `unlock` again: %w", err), m.Lock())
	}
	if err := rootpart.FinishSecret(m.volume(a.lock, a.open), a.chip, fresh); err != nil {
		return fmt.Errorf("the new machine secret is in force, and the next start finishes the rest: %w", err)
	}
	c.Print("The machine has a new secret. What the old one opened is gone, but for copies of this disk's header, and for the Secure Boot keys, where somebody has read those: `reseal --new-secret --new-keys` replaces them.\n")
	return m.note(a)
}

// typedAgain asks for the recovery key, which the new secret is to be kept under, and
// makes sure that the old one is what the machine goes by.
func (m *Machine) typedAgain(c hw.Console, f hw.File, a *acceptance) (*luks2.RecoveryKey, error) {
	memory, err := m.Memory()
	if err != nil {
		return nil, err
	}
	for {
		typed, err := c.AskKey(c.Language().Text(words.UnlockOnceMore), a.lock.Checks(), 0)
		if err != nil {
			return nil, err
		}
		if len(typed) == 0 {
			return nil, errRefused
		}
		key, volumeKey, secret, err := a.lock.OpenRecoveryKey(f, typed, rootpart.KeyLimit(memory))
		luks2.Wipe(typed)
		if err != nil {
			c.Print(c.Language().Say(words.TryAgain, err))
			continue
		}
		luks2.Wipe(volumeKey)
		same := secret.Equal(a.open.Secret)
		secret.Wipe()
		if !same {
			key.Wipe()
			return nil, errors.New("the machine secret is another one by now: `lock`, and `unlock` again")
		}
		return key, nil
	}
}

// finishSecret finishes a replacement of the machine secret that was cut.
func (m *Machine) finishSecret(lock *rootlock.Lock, open *Opened) error {
	if !rootpart.SecretUnfinished(m.Store, lock) {
		return nil
	}
	chip, err := m.TPM.Open()
	switch {
	case errors.Is(err, tpm.ErrAbsent):
		chip = nil
	case err != nil:
		return err
	default:
		defer chip.Close()
	}
	if err := rootpart.FinishSecret(m.volume(lock, open), chip, open.Secret); err != nil {
		return fmt.Errorf("the root partition is open; a replacement of the machine secret is still to be finished: %w", err)
	}
	return nil
}

// volume is the root partition, which is open.
func (m *Machine) volume(lock *rootlock.Lock, open *Opened) rootpart.Volume {
	return rootpart.Volume{Machine: m.Machine, Disk: m.Disk, Random: m.Random, Lock: lock, Key: open.VolumeKey}
}
