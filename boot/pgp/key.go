package pgp

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
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
		return fmt.Errorf("key is of the kind %s, want Ed25519, ECDSA or RSA", algorithm(k.PubKeyAlgo))
	}
}

// A moment is when a key is judged: by what it said of itself at one time, for a
// signature of another.
type moment struct {
	known time.Time // what was signed later is not looked at
	at    time.Time // when the key must be valid
	// kept lets a subkey's revocation count only from its own date on.
	kept bool
}

func now(at time.Time) moment { return moment{known: at, at: at} }

// algorithm names a public-key algorithm (RFC 9580, section 9.1).
func algorithm(id packet.PublicKeyAlgorithm) string {
	names := map[packet.PublicKeyAlgorithm]string{
		1: "RSA", 2: "RSA, to encrypt only", 3: "RSA, to sign only", 16: "Elgamal, which encrypts and does not sign", 17: "DSA", 18: "ECDH, which encrypts and does not sign", 19: "ECDSA",
		20: "Elgamal", 22: "EdDSA", 25: "X25519, which encrypts and does not sign", 26: "X448, which encrypts and does not sign", 27: "Ed25519", 28: "Ed448",
	}
	if name, ok := names[id]; ok {
		return name
	}
	return fmt.Sprintf("%d, which is not known", id)
}

// Check reports why no signature by the key could be accepted at a time.
func (k *Key) Check(at time.Time) error {
	entity, err := k.entity()
	if err != nil {
		return err
	}
	p, err := primary(entity, now(at))
	if err != nil || p.canSign {
		return err
	}
	err = errors.New("OpenPGP key may not sign and has no subkey that may")
	for i := range entity.Subkeys {
		_, refused := subkey(&entity.Subkeys[i], now(at))
		if refused == nil {
			return nil
		}
		// One that has expired can be renewed: it says most of what to do.
		if reasonOf(err) != ended {
			err = refused
		}
	}
	return err
}

// SigningKeys returns the keys whose signatures could be accepted at a time, with
// the time from which each no longer could; the zero time is never.
func (k *Key) SigningKeys(at time.Time) (map[Fingerprint]time.Time, error) {
	entity, err := k.entity()
	if err != nil {
		return nil, err
	}
	p, err := primary(entity, now(at))
	if err != nil {
		return nil, err
	}
	all := map[Fingerprint]time.Time{}
	if p.canSign {
		all[k.fingerprint] = p.end
	}
	for i := range entity.Subkeys {
		s := &entity.Subkeys[i]
		end, err := subkey(s, now(at))
		if err != nil {
			continue
		}
		if !p.end.IsZero() && (end.IsZero() || p.end.Before(end)) {
			end = p.end
		}
		all[Fingerprint(s.PublicKey.Fingerprint)] = end
	}
	return all, nil
}

// Ends returns from when on no signature by the key can be accepted any more, as
// far as is known at a time; the zero time is never.
func (k *Key) Ends(at time.Time) (time.Time, error) {
	all, err := k.SigningKeys(at)
	if err == nil && len(all) == 0 {
		err = k.Check(at)
	}
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	for _, end := range all {
		if end.IsZero() {
			return time.Time{}, nil
		}
		if end.After(last) {
			last = end
		}
	}
	return last, nil
}

// signer returns the key of that fingerprint, if it may sign at a moment.
func (k *Key) signer(issuer Fingerprint, m moment) (*packet.PublicKey, error) {
	entity, err := k.entity()
	if err != nil {
		return nil, err
	}
	p, err := primary(entity, m)
	if err != nil {
		return nil, err
	}
	if issuer == k.fingerprint {
		if !p.canSign {
			return nil, fmt.Errorf("OpenPGP key %s may not sign data, only keys", k.fingerprint)
		}
		return entity.PrimaryKey, nil
	}
	for i := range entity.Subkeys {
		if s := &entity.Subkeys[i]; bytes.Equal(s.PublicKey.Fingerprint, issuer[:]) {
			if _, err := subkey(s, m); err != nil {
				return nil, err
			}
			return s.PublicKey, nil
		}
	}
	return nil, fmt.Errorf("signature is by the OpenPGP key %s, want %s", issuer, k.fingerprint)
}

// validity is what a primary key's own signatures say of it.
type validity struct {
	canSign bool      // data, and not only keys
	end     time.Time // zero: never
}

// primary reports why the primary key is not valid at a moment. The signature that
// it made last over itself counts, whichever name that is over: then what an older
// copy of the certificate has besides changes nothing. Of several that were made in
// the same second all must agree.
func primary(e *openpgp.Entity, m moment) (validity, error) {
	key := e.PrimaryKey
	for _, r := range e.Revocations {
		// However it came about and whatever the date: it never counts again.
		if key.VerifyRevocationSignature(r.Packet) == nil {
			return validity{}, unusable(revoked, "OpenPGP key %X is revoked", key.Fingerprint)
		}
	}
	if m.at.Before(key.CreationTime) {
		return validity{}, unusable(early, "OpenPGP key %X is not valid yet: made on %s", key.Fingerprint, date(key.CreationTime))
	}
	var names []*packet.Signature
	for _, name := range e.Identities {
		if s, err := name.Verify(m.known, config()); err == nil {
			names = append(names, s)
		}
	}
	if hash := weakNames(e); len(names) == 0 && hash != 0 {
		return validity{}, unusable(weak, "OpenPGP key %X has signed its own name with %s, which does not count: want SHA-256, SHA-384 or SHA-512", key.Fingerprint, hash)
	}
	if len(names) == 0 {
		return validity{}, unusable(nameless, "OpenPGP key %X has no name with a valid signature by itself on %s", key.Fingerprint, date(m.known))
	}
	v := validity{canSign: true}
	for _, s := range newest(names) {
		v.canSign = v.canSign && s.FlagsValid && s.FlagSign
	}
	self := names
	if s, err := e.LatestValidDirectSignature(m.known, config()); err == nil && s.KeyLifetimeSecs != nil {
		self = append(self, s)
	}
	for _, s := range newest(self) {
		if end := endOf(key, s); !end.IsZero() && (v.end.IsZero() || end.Before(v.end)) {
			v.end = end
		}
	}
	return v, notEnded("OpenPGP key", key, v.end, m.at)
}

// weakNames returns the hash of the signatures that a key has made over its names,
// if it is one that does not count for any of them; zero for none.
func weakNames(e *openpgp.Entity) (weak crypto.Hash) {
	for _, name := range e.Identities {
		for _, s := range name.SelfCertifications {
			if !config().RejectHashAlgorithm(s.Packet.Hash) {
				return 0
			}
			weak = s.Packet.Hash
		}
	}
	return weak
}

// newest returns those of the signatures that were made last.
func newest(all []*packet.Signature) []*packet.Signature {
	last := slices.MaxFunc(all, func(a, b *packet.Signature) int { return a.CreationTime.Compare(b.CreationTime) }).CreationTime
	return slices.DeleteFunc(slices.Clone(all), func(s *packet.Signature) bool { return s.CreationTime.Unix() != last.Unix() })
}

// endOf is when a key expires by one of its signatures; the zero time is never.
func endOf(key *packet.PublicKey, s *packet.Signature) time.Time {
	if s.KeyLifetimeSecs == nil || *s.KeyLifetimeSecs == 0 {
		return time.Time{}
	}
	return key.CreationTime.Add(time.Duration(*s.KeyLifetimeSecs) * time.Second)
}

func notEnded(what string, key *packet.PublicKey, end, at time.Time) error {
	if end.IsZero() || at.Before(end) {
		return nil
	}
	err := &unusableError{reason: ended, text: fmt.Sprintf("%s %X has expired on %s", what, key.Fingerprint, date(end))}
	if key.IsSubkey {
		err.subkey = fmt.Sprintf("%X", key.Fingerprint)
	}
	return err
}

// subkey reports why a subkey, of a primary key that is valid, may not sign at
// a moment, and when it expires.
func subkey(s *openpgp.Subkey, m moment) (end time.Time, err error) {
	key := s.PublicKey
	for _, r := range s.Revocations {
		if s.Primary.PrimaryKey.VerifySubkeyRevocationSignature(r.Packet, key) == nil && (!m.kept || !m.at.Before(r.Packet.CreationTime)) {
			return end, fmt.Errorf("OpenPGP subkey %X is revoked", key.Fingerprint)
		}
	}
	if key.Version != 4 {
		return end, fmt.Errorf("OpenPGP subkey is of version %d, want 4", key.Version)
	}
	if err := strongKey(key); err != nil {
		return end, fmt.Errorf("OpenPGP subkey %X: %w", key.Fingerprint, err)
	}
	if m.at.Before(key.CreationTime) {
		return end, fmt.Errorf("OpenPGP subkey %X is not valid yet: made on %s", key.Fingerprint, date(key.CreationTime))
	}
	binding, err := s.LatestValidBindingSignature(m.known, config())
	if err != nil {
		return end, unbound(s, m.known)
	}
	if !binding.FlagsValid || !binding.FlagSign {
		return end, fmt.Errorf("OpenPGP subkey %X is not for signing", key.Fingerprint)
	}
	// The library has checked the primary key's signature by the subkey, where
	// there is one; that there is, and a strong one, it leaves to the caller.
	cross := binding.EmbeddedSignature
	if cross == nil || config().RejectHashAlgorithm(cross.Hash) || cross.SigExpired(m.at) {
		return end, fmt.Errorf("OpenPGP subkey %X has no valid signature over its primary key", key.Fingerprint)
	}
	end = endOf(key, binding)
	return end, notEnded("OpenPGP key", key, end, m.at)
}

// unbound says why no binding signature of a subkey counts.
func unbound(s *openpgp.Subkey, at time.Time) error {
	for _, b := range s.Bindings {
		if b.Packet.FlagSign && b.Packet.EmbeddedSignature == nil {
			return fmt.Errorf("OpenPGP subkey %X has no signature over its primary key", s.PublicKey.Fingerprint)
		}
	}
	for _, b := range s.Bindings {
		if b.Packet.FlagSign && config().RejectHashAlgorithm(b.Packet.Hash) {
			return fmt.Errorf("OpenPGP subkey %X is signed by its primary key with %s, which does not count: want SHA-256, SHA-384 or SHA-512", s.PublicKey.Fingerprint, b.Packet.Hash)
		}
	}
	return fmt.Errorf("OpenPGP subkey %X has no valid signature by its primary key on %s", s.PublicKey.Fingerprint, date(at))
}
