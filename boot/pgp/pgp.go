// Package pgp checks OpenPGP signatures of releases (RFC 9580) by one pinned
// key.
//
// It accepts one thing: a detached signature packet of version 4, binary or
// armored, over a binary document, by the pinned primary key or one of its
// signing subkeys that signed the primary key in turn, made with SHA-256 or
// better and Ed25519, ECDSA over a NIST curve or RSA from 3072 bits. It
// refuses everything else with its reason, and knows no web of trust, no key
// ring, no key IDs (whole fingerprints are compared) and no encryption. Where
// OpenPGP leaves readers a choice, there is none here: packets of other types,
// second signatures, trailing bytes, padded numbers and lengths in parts are
// all refused.
package pgp

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the hash algorithms of signatures
	_ "crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Bounds in bytes, of the armored form too.
const (
	MaxKey       = 64 << 10
	MaxSignature = 16 << 10
)

// MinRSA is the least length of an RSA key in bits.
const MinRSA = 3072

// Tolerance is how far in the future a signature may have been made. A
// machine's clock may be off by a time zone, when another system keeps local
// time in it; a signature within the tolerance is judged at the time it was
// made.
const Tolerance = 24 * time.Hour

// A Fingerprint names a key of version 4.
type Fingerprint [20]byte

// String returns upper-case hexadecimal digits, as gpg prints them.
func (f Fingerprint) String() string { return strings.ToUpper(hex.EncodeToString(f[:])) }

// A Key is an OpenPGP certificate: a primary key, its names and its subkeys.
// It is never changed, and can be used by several goroutines.
type Key struct {
	binary      []byte
	fingerprint Fingerprint
}

var errPrivate = errors.New("OpenPGP key is a private one: want the public one, as gpg --export writes it")

// ParseKey reads exactly one transferable public key (RFC 9580, section 10.1),
// binary or armored, of at most MaxKey bytes. Whether it can sign today is for
// Check to say.
func ParseKey(input []byte) (*Key, error) {
	if len(input) > MaxKey {
		return nil, fmt.Errorf("OpenPGP key has %d bytes, more than %d: export it with --export-options export-minimal", len(input), MaxKey)
	}
	if bytes.HasPrefix(input, []byte("-----BEGIN PGP PRIVATE KEY BLOCK-----")) {
		return nil, errPrivate
	}
	binary, err := dearmor(input, "PUBLIC KEY BLOCK")
	if err != nil {
		return nil, fmt.Errorf("read OpenPGP key: %w", err)
	}
	all, err := frames(binary)
	if err != nil {
		return nil, fmt.Errorf("read OpenPGP key: %w", err)
	}
	if n := primaries(all); n > 1 {
		return nil, fmt.Errorf("the file holds %d OpenPGP keys, want one public key: export it alone, with gpg --export and its fingerprint", n)
	}
	if err := checkKeyForm(all); err != nil {
		return nil, err
	}
	k := &Key{binary: bytes.Clone(binary)}
	entity, err := k.entity()
	if err != nil {
		return nil, err
	}
	if entity.PrimaryKey.Version != 4 || len(entity.PrimaryKey.Fingerprint) != len(k.fingerprint) {
		return nil, fmt.Errorf("OpenPGP key is of version %d, want 4", entity.PrimaryKey.Version)
	}
	if err := strongKey(entity.PrimaryKey); err != nil {
		return nil, fmt.Errorf("OpenPGP key: %w", err)
	}
	copy(k.fingerprint[:], entity.PrimaryKey.Fingerprint)
	return k, nil
}

// primaries counts the keys in a row of packets.
func primaries(all []frame) (n int) {
	for _, f := range all {
		if f.tag == tagPublicKey {
			n++
		}
	}
	return n
}

// tags are the names of packets that somebody may take for a key or a signature
// (RFC 9580, section 5).
var tags = map[uint8]string{
	1: "an encrypted session key", 2: "a signature", 3: "a session key encrypted by a password", 4: "the head of a signed message", 5: "a secret key",
	6: "a public key", 7: "a secret subkey", 8: "compressed data", 9: "encrypted data", 10: "a marker", 11: "data", 12: "a trust packet", 13: "a user ID",
	14: "a public subkey", 17: "a user attribute", 18: "encrypted data", 20: "encrypted data", 21: "padding",
}

// what says what a packet is.
func (f frame) what() string {
	if name, ok := tags[f.tag]; ok {
		return fmt.Sprintf("%s (packet of type %d)", name, f.tag)
	}
	return fmt.Sprintf("a packet of type %d", f.tag)
}

// checkKeyForm checks the order of a key's packets and what each holds.
func checkKeyForm(all []frame) error {
	names := map[string]bool{}
	for i, f := range all {
		switch {
		case f.tag == 5 || f.tag == 7:
			return errPrivate
		case (f.tag == tagPublicKey) != (i == 0):
			return fmt.Errorf("OpenPGP key: starts with %s, want one public key: export it with gpg --export and its fingerprint", f.what())
		case f.tag == tagUserID:
			if names[string(f.body)] {
				return fmt.Errorf("OpenPGP key has the name %.60q twice", f.body)
			}
			names[string(f.body)] = true
		case f.tag != tagPublicKey && f.tag != tagPublicSubkey && f.tag != tagSignature && f.tag != tagUserAttribute:
			return fmt.Errorf("OpenPGP key holds %s, which no public key has: export it again, with gpg --export and its fingerprint", f.what())
		}
		// Photographs, and keys and signatures of kinds that are not used here
		// (to encrypt, by others), may well be beyond the library.
		if f.tag == tagUserAttribute {
			continue
		}
		if _, err := f.parse(); err != nil && !isUnsupported(err) {
			return fmt.Errorf("OpenPGP key: packet %d: %w", i+1, err)
		}
	}
	return nil
}

// entity returns the key as the library sees it. It keeps what it finds out
// about a signature at one time and would take it for the truth at another,
// so that nobody shares an entity.
func (k *Key) entity() (*openpgp.Entity, error) {
	packets := packet.NewReader(bytes.NewReader(k.binary))
	entity, err := openpgp.ReadEntity(packets)
	if err != nil {
		return nil, fmt.Errorf("parse OpenPGP key: %w", err)
	}
	if _, err := packets.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("parse OpenPGP key: more follows it")
	}
	return entity, nil
}

// Fingerprint returns the primary key's.
func (k *Key) Fingerprint() Fingerprint { return k.fingerprint }

// Bytes returns the key's binary form, as a boot contract holds it.
func (k *Key) Bytes() []byte { return bytes.Clone(k.binary) }

// Verify reports why a detached signature of at most MaxSignature bytes, binary
// or armored, does not show that the key's owner signed the message. The message
// is read to its end only when nothing else is wrong. now is the best that is
// known of the time: where a clock may be dead, the latest of the clock, the
// date of the running system and the last time that was known to be good.
func (k *Key) Verify(message io.Reader, detached []byte, now time.Time) error {
	s, err := parseSignature(detached)
	if err != nil {
		return err
	}
	at, err := s.judgedAt(now)
	if err != nil {
		return err
	}
	return k.verify(message, s, moment{known: at, at: at})
}

// VerifyMade is Verify for a signature that has been published for a while: it is
// judged at the time it was made. What expired or was revoked since does not
// matter, and what the key says of itself by now counts. Anyone who has stolen a
// key can date a signature back, so it must not decide what is installed.
func (k *Key) VerifyMade(message io.Reader, detached []byte, now time.Time) error {
	s, err := parseSignature(detached)
	if err != nil {
		return err
	}
	if _, err := s.judgedAt(s.created); err != nil {
		return err
	}
	known, err := s.judgedAt(now)
	if err != nil && s.created.After(now) {
		return err
	} else if err != nil { // the signature has expired since
		known = now
	}
	return k.verify(message, s, moment{known: known, at: s.created, kept: true})
}

func (k *Key) verify(message io.Reader, s *signature, m moment) error {
	signer, err := k.signer(s.issuer, m)
	if err != nil {
		return err
	}
	if s.created.Before(signer.CreationTime) {
		return fmt.Errorf("signature was made on %s, before its key on %s", date(s.created), date(signer.CreationTime))
	}
	h, err := s.packet.PrepareVerify()
	if err != nil {
		return fmt.Errorf("check signature: %w", err)
	}
	if _, err := io.Copy(h, message); err != nil {
		return fmt.Errorf("read what is signed: %w", err)
	}
	if err := signer.VerifySignature(h, s.packet); err != nil {
		return fmt.Errorf("signature does not fit what is signed: %w", err)
	}
	// The library has added the signature's own fields to the hash. Comparing
	// the hash's first bytes adds no security, but leaves no bit of the
	// signature that can be changed.
	if !bytes.HasPrefix(h.Sum(nil), s.packet.HashTag[:]) {
		return errors.New("signature does not fit what is signed: the hash's first bytes differ")
	}
	return nil
}

// judgedAt returns the time at which key and signature must be valid.
func (s *signature) judgedAt(now time.Time) (time.Time, error) {
	if s.created.After(now.Add(Tolerance)) {
		return time.Time{}, fmt.Errorf("signature was made on %s, and it is %s: set the clock", date(s.created), date(now))
	}
	if s.created.After(now) {
		now = s.created
	}
	if !s.expires.IsZero() && !now.Before(s.expires) {
		return time.Time{}, fmt.Errorf("signature has expired on %s", date(s.expires))
	}
	return now, nil
}

func date(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

// config is the library's policy for the signatures inside a key. It is a
// second line: form and algorithms are checked here as well.
func config() *packet.Config {
	return &packet.Config{
		MinRSABits: MinRSA,
		RejectHashAlgorithms: map[crypto.Hash]bool{
			crypto.MD5: true, crypto.SHA1: true, crypto.RIPEMD160: true, crypto.SHA224: true,
		},
	}
}
