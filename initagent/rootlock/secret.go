package rootlock

import (
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
)

// ErrTwoKeys refuses to leave the old machine secret under a recovery key that nobody
// has typed.
var ErrTwoKeys = words.Errorf(words.TwoKeys)

// A NewSecret is what ReplaceSecret puts into a header. All of it stays the caller's.
type NewSecret struct {
	Secret *policy.Secret
	Sealed *policy.Sealed
	// Recovery is the recovery key that there is, which opens the new secret, too.
	Recovery *luks2.RecoveryKey
	// Owner makes the owner signature. Next, where it is not nil, signs the volume as well, by
	// the same header: it is about to replace Owner in the firmware's db.
	Owner, Next *rsa.PrivateKey
}

// ReplaceSecret has the header be for a new machine secret: its keyslot, its sealed
// object and its escrow under the recovery key, which stays, come with one header.
// Cut before it, the old secret opens the volume, by the TPM and by the recovery key;
// cut after it, the new one does in both ways. The old secret's keyslot is left to
// RemoveReplaced, with a token that says so.
//
// A secret with a PIN brings its own, and one without takes it away: the old secret's
// index is deleted with it, so that an older copy of the header, which asks for another
// PIN or for none, opens by the TPM no more. One that is bound to PCRs has none, and such
// a copy opens as it did: package unlock sets no PIN there.
func (l *Lock) ReplaceSecret(random io.Reader, d block.Device, volumeKey []byte, s NewSecret) error {
	defer l.CarryPhrase(nil) // what was sealed for this header is not for another one
	if len(l.Recoveries) != 1 {
		return ErrTwoKeys
	}
	kept, err := keptPIN(random, volumeKey, s.Secret, s.Sealed)
	if err != nil {
		return fmt.Errorf("put a new machine secret into the root partition's header: %w", err)
	}
	err = l.Header.Change(random, d, func(c *luks2.Change) error {
		passphrase := s.Secret.LUKSPassphrase()
		defer luks2.Wipe(passphrase)
		n, err := c.AddKeyslot(volumeKey, passphrase, luks2.PBKDF2())
		if err != nil {
			return err
		}
		if err := l.setTPMToken(c, tpmBinding{n, volumeKey, s.Sealed, kept, s.Owner, s.Next}); err != nil {
			return err
		}
		if err := l.setEscrow(random, c, s.Secret, s.Recovery); err != nil || l.TPMSlot < 0 {
			return err
		}
		_, err = c.AddToken(luks2.Token{Type: replacedToken, Keyslots: []int{l.TPMSlot}})
		return err
	})
	if err != nil {
		return fmt.Errorf("put a new machine secret into the root partition's header: %w", err)
	}
	return l.again()
}

func (l *Lock) setEscrow(random io.Reader, c *luks2.Change, secret *policy.Secret, key *luks2.RecoveryKey) error {
	raw := key.Bytes()
	defer luks2.Wipe(raw)
	escrow, err := policy.Escrow(random, raw, secret)
	if err != nil {
		return err
	}
	number := l.Recoveries[0].Token
	token := l.Header.Tokens()[number]
	if token.Fields == nil {
		token.Fields = map[string]json.RawMessage{}
	}
	if token.Fields[escrowField], err = json.Marshal(escrow); err != nil {
		return err
	}
	return c.SetToken(number, token)
}

// RemoveReplaced removes the keyslot that ReplaceSecret has left, and then the tokens
// that name such: cut in between, it is called again. Anybody with the disk can put further
// tokens there. One that names a keyslot in use, or none that is there, is removed alone:
// it must not keep the earlier secret's keyslot.
func (l *Lock) RemoveReplaced(random io.Reader, d block.Device) error {
	if !l.Replaced {
		return nil
	}
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		for _, n := range l.replacedKeyslots() {
			if err := c.RemoveKeyslot(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = l.Header.Change(random, d, func(c *luks2.Change) error {
			for number, t := range l.Header.Tokens() {
				if t.Type != replacedToken {
					continue
				}
				if err := c.RemoveToken(number); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("remove the keyslot of the earlier machine secret: %w", err)
	}
	return l.again()
}

// replacedKeyslots are those that are there and in no use, of all that the tokens name.
func (l *Lock) replacedKeyslots() (slots []int) {
	named := map[int]bool{}
	for _, t := range l.Header.Tokens() {
		if t.Type == replacedToken {
			for _, n := range t.Keyslots {
				named[n] = true
			}
		}
	}
	bound := l.tpmKeyslots()
	for _, k := range l.Header.Keyslots() {
		recovery := slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return r.Keyslot == k.Number })
		if named[k.Number] && !slices.Contains(bound, k.Number) && !recovery {
			slots = append(slots, k.Number)
		}
	}
	return slots
}
