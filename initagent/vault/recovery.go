package vault

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// OpenRecovery opens the volume with a recovery key that somebody typed, and
// returns the machine secret with it. The caller wipes both.
func (l *Lock) OpenRecovery(r io.ReaderAt, typed []byte, memory uint64) ([]byte, *policy.Secret, error) {
	key, err := luks2.ParseRecoveryKey(typed)
	if err != nil {
		return nil, nil, err
	}
	defer key.Wipe()
	passphrase := key.Passphrase()
	defer luks2.Wipe(passphrase)
	keyslots := []int{}
	for _, have := range l.Recoveries {
		keyslots = append(keyslots, have.Keyslot)
	}
	volumeKey, opened, err := l.Header.Unlock(r, passphrase, memory, keyslots...)
	if err != nil {
		return nil, nil, fmt.Errorf("open the root partition with the recovery key: %w", err)
	}
	raw := key.Bytes()
	defer luks2.Wipe(raw)
	secret, err := policy.OpenEscrow(raw, l.escrow(opened))
	if err != nil {
		luks2.Wipe(volumeKey)
		return nil, nil, fmt.Errorf("the recovery key opens the volume and not what was kept under it: %w", err)
	}
	return volumeKey, secret, nil
}

func (l *Lock) escrow(keyslot int) []byte {
	for _, r := range l.Recoveries {
		if r.Keyslot == keyslot {
			return r.Escrow
		}
	}
	return nil
}

// AddRecovery adds a recovery key beside those that there are. Cut anywhere, the
// old keys open, and the new one does or does not. Nothing is taken over: the
// volume key, the secret and the key stay the caller's.
func (l *Lock) AddRecovery(random io.Reader, d block.Device, volumeKey []byte, secret *policy.Secret, key *luks2.RecoveryKey, k luks2.KDF) error {
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		return addRecovery(random, c, volumeKey, secret, key, k)
	})
	if err != nil {
		return fmt.Errorf("add a recovery key: %w", err)
	}
	return l.again()
}

// errOnlyKey refuses to leave a volume to the TPM alone.
var errOnlyKey = errors.New("no other recovery key would be left")

// RemoveRecoveries removes every recovery key but the one of a keyslot. Tokens
// go after their keyslots: cut in between, the next removal finds what is left.
// The key that stays is not touched.
func (l *Lock) RemoveRecoveries(random io.Reader, d block.Device, keep int) error {
	if !slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return r.Keyslot == keep }) {
		return fmt.Errorf("remove recovery keys: %w", errOnlyKey)
	}
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		for _, r := range l.Recoveries {
			if r.Keyslot == keep {
				continue
			}
			if err := c.RemoveKeyslot(r.Keyslot); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = l.Header.Change(random, d, l.removeEmptyTokens)
	}
	if err != nil {
		return fmt.Errorf("remove recovery keys: %w", err)
	}
	return l.again()
}

func (l *Lock) removeEmptyTokens(c *luks2.Change) error {
	for number, t := range l.Header.Tokens() {
		if t.Type == luks2.RecoveryTokenType && len(t.Keyslots) == 0 {
			if err := c.RemoveToken(number); err != nil {
				return err
			}
		}
	}
	return nil
}

// RecoveryKeyslot is the keyslot that a recovery key opens.
func (l *Lock) RecoveryKeyslot(r io.ReaderAt, key *luks2.RecoveryKey, memory uint64) (int, error) {
	passphrase := key.Passphrase()
	defer luks2.Wipe(passphrase)
	keyslots := []int{}
	for _, have := range l.Recoveries {
		keyslots = append(keyslots, have.Keyslot)
	}
	volumeKey, opened, err := l.Header.Unlock(r, passphrase, memory, keyslots...)
	if err != nil {
		return 0, err
	}
	luks2.Wipe(volumeKey)
	return opened, nil
}

// again reads the lock from the header as it is now.
func (l *Lock) again() error {
	now, err := read(l.Header)
	if err != nil {
		return err
	}
	now.Health = l.Health
	*l = *now
	return nil
}
