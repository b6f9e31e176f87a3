package recovery

import (
	"errors"
	"fmt"
	"runtime"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/vault"
)

// RecoveryKey replaces the recovery key.
//
// The order: the new key is added, shown, and typed back, and only then the old
// one is removed. Cut before the new one is complete, the old one opens; cut
// before the removal, both do; cut in it, the new one does, and the next
// replacement removes what is left of the old one.
func (m *Machine) RecoveryKey(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	lock, err := m.locked(p)
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
	f, err := m.root(p)
	if err != nil {
		return err
	}
	defer f.Close()
	cpus := runtime.NumCPU()
	kdf := luks2.Argon2id(rootpart.KeyMemory(memory, cpus), cpus)
	if err := lock.AddRecovery(m.Random, f, open.VolumeKey, open.Secret, &fresh, kdf); err != nil {
		return err
	}
	keyslot, err := m.showAndCheck(c, f, lock, &fresh, rootpart.KeyLimit(memory))
	if err != nil {
		return errors.Join(err, m.takeBack(f, lock, &fresh, rootpart.KeyLimit(memory)))
	}
	if err := lock.RemoveRecoveries(m.Random, f, keyslot); err != nil {
		return fmt.Errorf("the new recovery key is good; the old one may be, too: %w", err)
	}
	c.Print("The new recovery key is the only one.\n")
	return nil
}

// showAndCheck shows the key and asks for it until it is typed back, by which
// its keyslot is opened: what was written down is what opens.
func (m *Machine) showAndCheck(c hw.Console, f hw.File, lock *vault.Lock, fresh *luks2.RecoveryKey, limit uint64) (int, error) {
	text := fresh.Passphrase()
	defer luks2.Wipe(text)
	drawn, err := console.QR(string(text))
	if err != nil {
		return 0, err
	}
	for {
		c.PrintSecret("\n" + drawn + "\nThis machine's NEW RECOVERY KEY:\n\n    " + string(text) + "\n\n")
		typed, err := c.Ask("Write it down, and type it back from what you wrote (an empty line keeps the old key): ", false, 0)
		c.Print("\033[H\033[2J\033[3J") // and off the screen
		if err != nil {
			return 0, err
		}
		if len(typed) == 0 {
			return 0, errors.New("the new recovery key was not typed back: the old one stays")
		}
		key, err := luks2.ParseRecoveryKey(typed)
		luks2.Wipe(typed)
		if err != nil {
			c.Print(fmt.Sprintf("%v. Here it is again:\n", err))
			continue
		}
		keyslot, err := lock.RecoveryKeyslot(f, &key, limit)
		same := err == nil && equal(&key, fresh)
		key.Wipe()
		if same {
			return keyslot, nil
		}
		c.Print("That is not the new key. Here it is again:\n")
	}
}

func equal(a, b *luks2.RecoveryKey) bool {
	x, y := a.Bytes(), b.Bytes()
	defer luks2.Wipe(x)
	defer luks2.Wipe(y)
	return string(x) == string(y)
}

// takeBack removes the new key again, and leaves the ones before.
func (m *Machine) takeBack(f hw.File, lock *vault.Lock, fresh *luks2.RecoveryKey, limit uint64) error {
	keyslot, err := lock.RecoveryKeyslot(f, fresh, limit)
	if err == nil {
		err = lock.RemoveRecovery(m.Random, f, keyslot)
	}
	if err != nil {
		return fmt.Errorf("the new recovery key was not taken away again: %w", err)
	}
	return nil
}
