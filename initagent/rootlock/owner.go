package rootlock

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// CheckOwnerSignature verifies the owner signature, or the one by the key that is about to replace the first,
// by the certificates of the firmware's db. Each of the two counts only where db has its
// key, so that the second one vouches for no more than the first.
func (l *Lock) CheckOwnerSignature(volumeKey []byte, db []*x509.Certificate) error {
	err := CheckOwnerSignature(l.OwnerSignature, volumeKey, db)
	if err != nil && len(l.NextOwnerSignature) > 0 && CheckOwnerSignature(l.NextOwnerSignature, volumeKey, db) == nil {
		return nil
	}
	return err
}

// OpenedBy notes which volume this lock is of, so that what lies on it can be asked for
// its owner's signature (Signed). It keeps no key.
func (l *Lock) OpenedBy(volumeKey []byte) {
	fingerprint := policy.VolumeFingerprint(volumeKey)
	l.volume = &fingerprint
}

// Signed reports whether the key of a certificate has made the owner signature of the volume, and
// whether it has signed the one by the key that is about to replace the first. A lock
// that was not opened knows no volume, and nobody has signed for it.
func (l *Lock) Signed(c *x509.Certificate) (first, next bool) {
	if l.volume == nil {
		return false, false
	}
	return signs(c, l.OwnerSignature, *l.volume), signs(c, l.NextOwnerSignature, *l.volume)
}

// setNextOwnerSignature makes the owner signature of the volume by a second key as well, which is about to replace
// the first one in the firmware's db.
func setNextOwnerSignature(t *luks2.Token, owner *rsa.PrivateKey, volumeKey []byte) error {
	signature, err := SignAsOwner(owner, volumeKey)
	if err != nil {
		return err
	}
	t.Fields[nextOwnerSignatureField], err = json.Marshal(signature)
	return err
}

// errNoToken: what is signed again lies beside the sealed secret.
var errNoToken = errors.New("the header has no sealed secret, or none that is understood")

// SignAgain has the volume's owner signature be by one key alone, once no other is in the firmware's
// db any more. The object stays. Cut before the header is written, both owner signatures stand; cut
// after it, the one.
func (l *Lock) SignAgain(random io.Reader, d block.Device, volumeKey []byte, owner *rsa.PrivateKey) error {
	if l.Sealed == nil {
		return fmt.Errorf("make the owner signature of the root partition by one key: %w", errNoToken)
	}
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		return l.setTPMToken(c, tpmBinding{keyslot: l.TPMSlot, volumeKey: volumeKey, sealed: l.Sealed, kept: l.KeptPIN, owner: owner})
	})
	if err != nil {
		return fmt.Errorf("make the owner signature of the root partition by one key: %w", err)
	}
	return l.again()
}
