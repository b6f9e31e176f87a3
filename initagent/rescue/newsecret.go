package rescue

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/vault"
)

// NewSecret makes a new machine secret, has the TPM and the recovery key open the root
// partition by that one, and accepts the machine as it is now, as Reseal does. What a cut
// leaves is said in package rootpart; the recovery key opens all the time.
func (m *Machine) NewSecret(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	open.Wipe()
	lock, err := m.locked(p)
	if err != nil {
		return err
	}
	if len(lock.Recoveries) != 1 {
		return vault.ErrTwoKeys
	}
	check := func(files fs.FS) error { return rootpart.CheckSystems(files, p.contract, p.table) }
	if err := m.ESP.Read(p.disk, check); err != nil {
		return err
	}
	return m.accepting(c, "Make a new machine secret, and accept this machine as it is now? The recovery key stays.\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware).", m.newSecret)
}

func (m *Machine) newSecret(c hw.Console, a *acceptance) error {
	if err := a.binding.MaySucceed(a.lock, a.open.Secret, a.record); err != nil {
		return err
	}
	f, err := m.root(a.place)
	if err != nil {
		return err
	}
	defer f.Close()
	key, err := m.typedAgain(c, f, a)
	if err != nil {
		return err
	}
	defer key.Wipe()
	fresh, err := policy.NewSecret(m.Random)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	if err := m.replace(f, a, key, fresh); err != nil {
		return err
	}
	*a.open.Secret = *fresh
	if err := m.Keeper.Keep(a.open); err != nil {
		return errors.Join(fmt.Errorf("the new machine secret is in force: `unlock` again: %w", err), m.Lock())
	}
	if err := rootpart.FinishSecret(m.Machine, a.disk, m.Random, a.chip, a.lock, a.open.VolumeKey, fresh); err != nil {
		return fmt.Errorf("the new machine secret is in force, and the next start finishes the rest: %w", err)
	}
	c.Print("The machine has a new secret. What the old one opened is gone, but for copies of this disk's header.\n")
	return m.note(a)
}

// replace has the header be for the new secret. After an error of its own the header
// says which one it is for: `unlock` asks it.
func (m *Machine) replace(f hw.File, a *acceptance, key *luks2.RecoveryKey, fresh *policy.Secret) error {
	keys, err := rootpart.StoredKeys(m.Store, a.open.Secret)
	if err != nil {
		return err
	}
	var owner *rsa.PrivateKey
	if keys != nil {
		defer keys.Wipe()
		owner = keys.DB.Key
	}
	a.noted = a.binding.Now(a.record, a.lock)
	if err := rootpart.PrepareSecret(m.Store, m.Random, a.open.Secret, fresh, a.noted); err != nil {
		return err
	}
	b := a.binding
	b.Consent = nil // a TPM without room for a second record keeps the one that it has
	sealed, err := b.Seal(fresh, a.boots[0], a.record, a.boots[1:]...)
	if err != nil {
		return errors.Join(err, rootpart.FinishSecret(m.Machine, a.disk, m.Random, a.chip, a.lock, a.open.VolumeKey, a.open.Secret))
	}
	if err := a.lock.ReplaceSecret(m.Random, f, a.open.VolumeKey, fresh, key, sealed, owner); err != nil {
		return errors.Join(fmt.Errorf("%w. Nothing is lost: `unlock` again, which finishes it or takes it back", err), m.Lock())
	}
	return nil
}

// typedAgain asks for the recovery key, which the new secret is to be kept under, and
// makes sure that the old one is what the machine goes by.
func (m *Machine) typedAgain(c hw.Console, f hw.File, a *acceptance) (*luks2.RecoveryKey, error) {
	memory, err := m.Memory()
	if err != nil {
		return nil, err
	}
	for {
		typed, err := c.Ask("Recovery key, once more (an empty line gives up): ", true, 0)
		if err != nil {
			return nil, err
		}
		if len(typed) == 0 {
			return nil, errRefused
		}
		volumeKey, secret, err := a.lock.OpenRecovery(f, typed, rootpart.KeyLimit(memory))
		if err != nil {
			luks2.Wipe(typed)
			c.Print(fmt.Sprintf("%v. Nothing is lost: try again.\n", err))
			continue
		}
		luks2.Wipe(volumeKey)
		same := secret.Equal(a.open.Secret)
		secret.Wipe()
		key, err := luks2.ParseRecoveryKey(typed)
		luks2.Wipe(typed)
		if err == nil && !same {
			key.Wipe()
			err = errors.New("the machine secret is another one by now: `lock`, and `unlock` again")
		}
		return &key, err
	}
}

// finishSecret finishes a replacement of the machine secret that was cut.
func (m *Machine) finishSecret(p *place, lock *vault.Lock, open *Opened) error {
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
	if err := rootpart.FinishSecret(m.Machine, p.disk, m.Random, chip, lock, open.VolumeKey, open.Secret); err != nil {
		return fmt.Errorf("the root partition is open; a replacement of the machine secret is still to be finished: %w", err)
	}
	return nil
}
