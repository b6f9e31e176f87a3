package vault

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
)

// CheckDeed verifies the deed, or the one by the key that is about to replace the first,
// by the certificates of the firmware's db. Each of the two counts only where db has its
// key, so that the second one vouches for no more than the first.
func (l *Lock) CheckDeed(volumeKey []byte, db []*x509.Certificate) error {
	err := CheckDeed(l.Deed, volumeKey, db)
	if err != nil && len(l.NextDeed) > 0 && CheckDeed(l.NextDeed, volumeKey, db) == nil {
		return nil
	}
	return err
}

// AddDeed signs the volume's deed by a second key as well, which is about to replace the
// first one in the firmware's db. Cut before the header is written, the first deed stands
// alone, and db has the first key; cut after it, there is one for either db. Whoever
// writes db next calls this before.
func (l *Lock) AddDeed(random io.Reader, d block.Device, volumeKey []byte, owner *rsa.PrivateKey, db *x509.Certificate) error {
	if len(l.NextDeed) > 0 && CheckDeed(l.NextDeed, volumeKey, []*x509.Certificate{db}) == nil {
		return nil
	}
	deed, err := SignDeed(owner, volumeKey)
	if err != nil {
		return err
	}
	for number, t := range l.Header.Tokens() {
		if t.Type != tpmToken {
			continue
		}
		if t.Fields[nextDeedField], err = json.Marshal(deed); err != nil {
			return err
		}
		err := l.Header.Change(random, d, func(c *luks2.Change) error { return c.SetToken(number, t) })
		if err != nil {
			return fmt.Errorf("sign the root partition's deed by a second key: %w", err)
		}
		return l.again()
	}
	return errors.New("sign the root partition's deed by a second key: it is not bound to a TPM")
}
