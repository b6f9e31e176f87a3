package pgp

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// isUnsupported tells what the library does not know from what is malformed.
func isUnsupported(err error) bool {
	_, ok := errors.AsType[pgperrors.UnsupportedError](err)
	return ok
}

// strongKey refuses algorithms and sizes that are not good enough to sign.
func strongKey(k *packet.PublicKey) error {
	switch k.PubKeyAlgo {
	case packet.PubKeyAlgoEd25519:
		return nil
	case packet.PubKeyAlgoRSA:
		if n, err := k.BitLength(); err != nil || n < MinRSA {
			return fmt.Errorf("RSA key of %d bits, want at least %d", n, MinRSA)
		}
		return nil
	case packet.PubKeyAlgoECDSA:
		switch curve, err := k.Curve(); {
		case err != nil:
			return err
		case curve != packet.CurveNistP256 && curve != packet.CurveNistP384 && curve != packet.CurveNistP521:
			return fmt.Errorf("ECDSA key over %s, want P-256, P-384 or P-521", curve)
		}
		return nil
	case packet.PubKeyAlgoEdDSA:
		switch curve, err := k.Curve(); {
		case err != nil:
			return err
		case curve != packet.Curve25519:
			return fmt.Errorf("EdDSA key over %s, want Ed25519", curve)
		}
		return nil
	default:
		return fmt.Errorf("key of public-key algorithm %d, want Ed25519, ECDSA or RSA", k.PubKeyAlgo)
	}
}

// Check reports why no signature by the key could be accepted at a time.
func (k *Key) Check(at time.Time) error {
	entity, err := k.entity()
	if err != nil {
		return err
	}
	canSign, err := primary(entity, at)
	if err != nil || canSign {
		return err
	}
	err = errors.New("OpenPGP key may not sign and has no subkey that may")
	for i := range entity.Subkeys {
		if err = subkey(&entity.Subkeys[i], at); err == nil {
			return nil
		}
	}
	return err
}

// signer returns the key of that fingerprint, if it may sign at a time.
func (k *Key) signer(issuer Fingerprint, at time.Time) (*packet.PublicKey, error) {
	entity, err := k.entity()
	if err != nil {
		return nil, err
	}
	canSign, err := primary(entity, at)
	if err != nil {
		return nil, err
	}
	if issuer == k.fingerprint {
		if !canSign {
			return nil, fmt.Errorf("OpenPGP key %s may not sign data, only keys", k.fingerprint)
		}
		return entity.PrimaryKey, nil
	}
	for i := range entity.Subkeys {
		if s := &entity.Subkeys[i]; bytes.Equal(s.PublicKey.Fingerprint, issuer[:]) {
			if err := subkey(s, at); err != nil {
				return nil, err
			}
			return s.PublicKey, nil
		}
	}
	return nil, fmt.Errorf("signature is by the OpenPGP key %s, want %s", issuer, k.fingerprint)
}

// primary reports why the primary key is not valid at a time, and whether it
// may sign data. All names must agree: which of several counts is something
// that readers differ in.
func primary(e *openpgp.Entity, at time.Time) (canSign bool, err error) {
	key := e.PrimaryKey
	for _, r := range e.Revocations {
		// However it came about and whatever the date: it never counts again.
		if key.VerifyRevocationSignature(r.Packet) == nil {
			return false, fmt.Errorf("OpenPGP key %X is revoked", key.Fingerprint)
		}
	}
	if at.Before(key.CreationTime) {
		return false, fmt.Errorf("OpenPGP key %X is not valid yet: made on %s", key.Fingerprint, date(key.CreationTime))
	}
	var self []*packet.Signature
	for _, name := range e.Identities {
		if s, err := name.Verify(at, config()); err == nil {
			self = append(self, s)
		}
	}
	if len(self) == 0 {
		return false, fmt.Errorf("OpenPGP key %X has no name with a valid signature by itself on %s", key.Fingerprint, date(at))
	}
	if s, err := e.LatestValidDirectSignature(at, config()); err == nil && s.KeyLifetimeSecs != nil {
		if err := notExpired(key, s, at); err != nil {
			return false, err
		}
	}
	canSign = true
	for _, s := range self {
		if err := notExpired(key, s, at); err != nil {
			return false, err
		}
		canSign = canSign && s.FlagsValid && s.FlagSign
	}
	return canSign, nil
}

func notExpired(key *packet.PublicKey, s *packet.Signature, at time.Time) error {
	if s.KeyLifetimeSecs == nil || *s.KeyLifetimeSecs == 0 {
		return nil
	}
	end := key.CreationTime.Add(time.Duration(*s.KeyLifetimeSecs) * time.Second)
	if at.Before(end) {
		return nil
	}
	return fmt.Errorf("OpenPGP key %X has expired on %s", key.Fingerprint, date(end))
}

// subkey reports why a subkey, of a primary key that is valid, may not sign at
// a time.
func subkey(s *openpgp.Subkey, at time.Time) error {
	key := s.PublicKey
	for _, r := range s.Revocations {
		if s.Primary.PrimaryKey.VerifySubkeyRevocationSignature(r.Packet, key) == nil {
			return fmt.Errorf("OpenPGP subkey %X is revoked", key.Fingerprint)
		}
	}
	if key.Version != 4 {
		return fmt.Errorf("OpenPGP subkey is of version %d, want 4", key.Version)
	}
	if err := strongKey(key); err != nil {
		return fmt.Errorf("OpenPGP subkey %X: %w", key.Fingerprint, err)
	}
	if at.Before(key.CreationTime) {
		return fmt.Errorf("OpenPGP subkey %X is not valid yet: made on %s", key.Fingerprint, date(key.CreationTime))
	}
	binding, err := s.LatestValidBindingSignature(at, config())
	if err != nil {
		return unbound(s, at)
	}
	if !binding.FlagsValid || !binding.FlagSign {
		return fmt.Errorf("OpenPGP subkey %X is not for signing", key.Fingerprint)
	}
	// The library has checked the primary key's signature by the subkey, where
	// there is one; that there is, and a strong one, it leaves to the caller.
	cross := binding.EmbeddedSignature
	if cross == nil || config().RejectHashAlgorithm(cross.Hash) || cross.SigExpired(at) {
		return fmt.Errorf("OpenPGP subkey %X has no valid signature over its primary key", key.Fingerprint)
	}
	return notExpired(key, binding, at)
}

// unbound says why no binding signature of a subkey counts.
func unbound(s *openpgp.Subkey, at time.Time) error {
	for _, b := range s.Bindings {
		if b.Packet.FlagSign && b.Packet.EmbeddedSignature == nil {
			return fmt.Errorf("OpenPGP subkey %X has no signature over its primary key", s.PublicKey.Fingerprint)
		}
	}
	return fmt.Errorf("OpenPGP subkey %X has no valid signature by its primary key on %s", s.PublicKey.Fingerprint, date(at))
}
