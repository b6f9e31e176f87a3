package rootlock

import (
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// errOtherPIN refuses a header whose keyslot would not open by what it says of the PIN.
var errOtherPIN = errors.New("the sealed secret asks for another PIN than the keyslot, or for none")

// keptPIN is the PIN that goes along with a secret, as the header keeps it: nil for a
// secret without one. What it was sealed to must ask for the same.
func keptPIN(random io.Reader, volumeKey []byte, secret *policy.Secret, sealed *policy.Sealed) ([]byte, error) {
	pin := secret.PIN()
	switch {
	case (pin == nil) != (sealed.PIN == nil), pin != nil && pin.Stretch() != *sealed.PIN:
		return nil, errOtherPIN
	case pin == nil:
		return nil, nil
	}
	return pin.Keep(random, volumeKey)
}

// TakePIN has a secret that a recovery key has opened go along with the machine's PIN, so
// that the machine keeps it whatever is sealed again. Of a PIN that the header has lost
// nothing is known here; see HasPIN.
func (l *Lock) TakePIN(volumeKey []byte, secret *policy.Secret) {
	if !l.HasPIN() {
		return
	}
	pin, err := policy.KeptPIN(volumeKey, l.KeptPIN, *l.Sealed.PIN)
	if err != nil {
		return // it was altered: the note of what the machine has tells
	}
	defer pin.Wipe()
	secret.SetPIN(pin)
}

// KeepPIN writes the PIN that a secret goes along with into the header again, where that
// has lost it. It needs nobody's consent: the TPM asks for this PIN already.
func (l *Lock) KeepPIN(random io.Reader, d block.Device, volumeKey []byte, secret *policy.Secret) error {
	pin := secret.PIN()
	if pin == nil || !l.HasPIN() {
		return nil
	}
	if had, err := policy.KeptPIN(volumeKey, l.KeptPIN, *l.Sealed.PIN); err == nil {
		same := had.Equal(pin)
		had.Wipe()
		if same {
			return nil
		}
	}
	kept, err := keptPIN(random, volumeKey, secret, l.Sealed)
	if err == nil {
		err = l.Header.Change(random, d, func(c *luks2.Change) error {
			return l.setTPMToken(c, tpmBinding{keyslot: l.TPMSlot, volumeKey: volumeKey, sealed: l.Sealed, kept: kept})
		})
	}
	if err != nil {
		return fmt.Errorf("keep the PIN in the root partition's header: %w", err)
	}
	return l.again()
}

// HasPIN reports whether the TPM asks for a PIN, by what the header says. Anybody with the
// disk can have it say otherwise; it then opens nothing.
func (l *Lock) HasPIN() bool { return l != nil && l.Sealed != nil && l.Sealed.PIN != nil }

// PIN stretches what somebody typed as this lock's PIN. memory bounds, in bytes, what the
// header may have it take. The caller wipes the PIN.
func (l *Lock) PIN(typed []byte, memory uint64) (*policy.PIN, error) {
	if !l.HasPIN() {
		return nil, errors.New("this machine has no PIN")
	}
	if need := l.Sealed.PIN.Bytes(); need > memory {
		return nil, fmt.Errorf("try the PIN: %w: %d MiB, the limit is %d MiB", luks2.ErrMemory, need>>20, memory>>20)
	}
	defer luks2.FreeMemory(l.Sealed.PIN.Bytes())
	return l.Sealed.PIN.PIN(typed)
}

// NewPIN stretches what somebody typed as a new PIN. It costs what a keyslot does on a
// machine with so much memory, in bytes, and processors. The caller wipes the PIN.
func NewPIN(random io.Reader, typed []byte, memory uint64, cpus int) (*policy.PIN, error) {
	kdf := luks2.Argon2id(memory, cpus)
	s, err := policy.NewStretch(random, kdf.Time, max(kdf.Memory, policy.MinStretchMemory), kdf.CPUs)
	if err != nil {
		return nil, err
	}
	defer luks2.FreeMemory(s.Bytes())
	return s.PIN(typed)
}
