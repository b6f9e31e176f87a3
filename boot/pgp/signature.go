package pgp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Signature subpackets, RFC 9580 section 5.2.3.7.
const (
	subCreated     = 2
	subLifetime    = 3
	subIssuer      = 16
	subNotation    = 20
	subKeyServer   = 24
	subPolicy      = 26
	subSigner      = 28
	subEmbedded    = 32
	subFingerprint = 33
)

// A signature is one detached signature that has the right form.
type signature struct {
	packet  *packet.Signature
	issuer  Fingerprint
	created time.Time
	expires time.Time // zero: never
}

// parseSignature reads a detached signature. Its form is checked here, byte by
// byte, before the library sees it: the library looks for signatures in
// whatever it is given, and is content with the first that fits.
func parseSignature(input []byte) (*signature, error) {
	if len(input) > MaxSignature {
		return nil, fmt.Errorf("signature has %d bytes, more than %d", len(input), MaxSignature)
	}
	binary, err := dearmor(input, "SIGNATURE")
	if err != nil {
		return nil, fmt.Errorf("read signature: %w", err)
	}
	f, rest, err := nextFrame(binary)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read signature: %w", err)
	case f.tag != tagSignature:
		return nil, fmt.Errorf("starts with %s, want a detached signature alone, as gpg --detach-sign makes it", f.what())
	case len(rest) > 0:
		return nil, fmt.Errorf("%d bytes follow the signature, want one signature alone: sign with one key (gpg --local-user FINGERPRINT --detach-sign)", len(rest))
	}
	s := new(signature)
	if err := s.checkForm(f.body); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	p, err := f.parse()
	if err != nil {
		return nil, fmt.Errorf("parse signature: %w", err)
	}
	parsed, ok := p.(*packet.Signature)
	if !ok || parsed.CreationTime.Unix() != s.created.Unix() || !bytes.Equal(parsed.IssuerFingerprint, s.issuer[:]) {
		return nil, errors.New("parse signature: two readers disagree about it")
	}
	s.packet = parsed
	return s, nil
}

// Created returns when a detached signature says that it was made. Nobody has
// vouched for it before Verify has: it is for a machine without a clock, which
// judges a signature at the time it was made.
func Created(detached []byte) (time.Time, error) {
	s, err := parseSignature(detached)
	if err != nil {
		return time.Time{}, err
	}
	return s.created, nil
}

// Expires returns when a detached signature says that it ends; the zero time is
// never. Nobody has vouched for it before Verify has.
func Expires(detached []byte) (time.Time, error) {
	s, err := parseSignature(detached)
	if err != nil {
		return time.Time{}, err
	}
	return s.expires, nil
}

// Issuer returns whose key a detached signature says that it is by. Nobody has
// vouched for it before Verify has.
func Issuer(detached []byte) (Fingerprint, error) {
	s, err := parseSignature(detached)
	if err != nil {
		return Fingerprint{}, err
	}
	return s.issuer, nil
}

// checkForm checks a signature packet of version 4 (RFC 9580, section 5.2.3).
func (s *signature) checkForm(body []byte) error {
	if len(body) == 0 || body[0] != 4 {
		return errors.New("is not of version 4")
	}
	if len(body) < 6 {
		return fmt.Errorf("has %d bytes", len(body))
	}
	if t := packet.SignatureType(body[1]); t == packet.SigTypeText {
		return fmt.Errorf("is of type %#02x, made in text mode, want %#02x: over a binary document (gpg --no-textmode --detach-sign)", uint8(t), uint8(packet.SigTypeBinary))
	} else if t != packet.SigTypeBinary {
		return fmt.Errorf("is of type %#02x, want %#02x: over a binary document", uint8(t), uint8(packet.SigTypeBinary))
	}
	if err := strongHash(body[3]); err != nil {
		return err
	}
	hashed, rest, err := cutArea(body[4:])
	if err != nil {
		return err
	}
	unhashed, rest, err := cutArea(rest)
	if err != nil {
		return err
	}
	if err := s.readSubpackets(hashed, unhashed); err != nil {
		return err
	}
	if len(rest) < 2 {
		return errors.New("ends before its hash's first bytes")
	}
	return checkNumbers(packet.PublicKeyAlgorithm(body[2]), rest[2:])
}

// strongHash refuses everything but SHA-2 from 256 bits (RFC 9580, section 9.5).
func strongHash(id byte) error {
	if id == 8 || id == 9 || id == 10 {
		return nil
	}
	names := map[byte]string{1: "MD5", 2: "SHA-1", 3: "RIPEMD-160", 11: "SHA-224", 12: "SHA3-256", 14: "SHA3-512"}
	name, ok := names[id]
	if !ok {
		name = fmt.Sprintf("hash algorithm %d", id)
	}
	return fmt.Errorf("uses %s, want SHA-256, SHA-384 or SHA-512", name)
}

// cutArea cuts off an area of subpackets with its length.
func cutArea(b []byte) (area, rest []byte, err error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) > len(b)-2 {
		return nil, nil, errors.New("area of subpackets is cut short")
	}
	end := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:end], b[end:], nil
}

// readSubpackets takes creation, lifetime and issuer from the hashed area,
// each at most once in both areas, and refuses every critical subpacket that
// this package does not know.
func (s *signature) readSubpackets(hashed, unhashed []byte) error {
	seen := map[uint8]bool{}
	lifetime := uint32(0)
	var keyID []byte
	for i, area := range [][]byte{hashed, unhashed} {
		for len(area) > 0 {
			sub, rest, err := nextSubpacket(area)
			if err != nil {
				return err
			}
			area = rest
			if err := sub.acceptable(i == 0); err != nil {
				return err
			}
			if sub.id != subNotation && sub.known() {
				if seen[sub.id] {
					return fmt.Errorf("has two subpackets of type %d", sub.id)
				}
				seen[sub.id] = true
			}
			switch sub.id {
			case subCreated:
				s.created = time.Unix(int64(binary.BigEndian.Uint32(sub.data)), 0).UTC()
			case subLifetime:
				lifetime = binary.BigEndian.Uint32(sub.data)
			case subIssuer:
				keyID = sub.data
			case subFingerprint:
				copy(s.issuer[:], sub.data[1:])
			}
		}
	}
	if !seen[subCreated] || !seen[subFingerprint] {
		return errors.New("does not say when it was made and by the key of which fingerprint")
	}
	if lifetime != 0 {
		s.expires = s.created.Add(time.Duration(lifetime) * time.Second)
	}
	if keyID != nil && !bytes.Equal(keyID, s.issuer[len(s.issuer)-8:]) {
		return fmt.Errorf("names the key ID %X and the fingerprint %s", keyID, s.issuer)
	}
	return nil
}

type subpacket struct {
	id       uint8
	critical bool
	data     []byte
}

// nextSubpacket cuts off a subpacket (RFC 9580, section 5.2.3.7). A length in
// more bytes than it needs is refused.
func nextSubpacket(b []byte) (subpacket, []byte, error) {
	head, size := 1, uint64(b[0])
	switch {
	case b[0] == 255:
		return subpacket{}, nil, errors.New("has a subpacket of more than 16 KiB, or a padded length")
	case b[0] >= 192:
		head, size = 2, uint64(b[0]-192)<<8+bigEndian(b[1:], 1)+192
	}
	if size == 0 || len(b) < head || size > uint64(len(b)-head) {
		return subpacket{}, nil, errors.New("has a subpacket that is empty or cut short")
	}
	end := head + int(size)
	return subpacket{b[head] & 0x7f, b[head]&0x80 != 0, b[head+1 : end]}, b[end:], nil
}

// known reports whether this package knows what the subpacket means in a
// signature over a document.
func (p subpacket) known() bool {
	return slices.Contains([]uint8{subCreated, subLifetime, subIssuer, subNotation, subKeyServer, subPolicy, subSigner, subFingerprint}, p.id)
}

func (p subpacket) acceptable(hashed bool) error {
	sizes := map[uint8]int{subCreated: 4, subLifetime: 4, subIssuer: 8, subFingerprint: 21}
	size, fixed := sizes[p.id]
	switch {
	case p.critical && !p.known():
		return fmt.Errorf("has a critical subpacket of type %d, which is not known", p.id)
	case p.critical && p.id == subNotation:
		return errors.New("has a critical notation, and none is known")
	case p.id == subEmbedded:
		return errors.New("holds another signature")
	case fixed && len(p.data) != size:
		return fmt.Errorf("has a subpacket of type %d with %d bytes, want %d", p.id, len(p.data), size)
	case p.id == subFingerprint && p.data[0] != 4:
		return fmt.Errorf("is by a key of version %d, want 4", p.data[0])
	// The issuer's key ID is the one thing that is usually not signed.
	case !hashed && (p.id != subIssuer || p.critical):
		return fmt.Errorf("has a subpacket of type %d that it does not sign", p.id)
	}
	return nil
}

// checkNumbers checks the numbers that make up the signature: as many as the
// algorithm has, each without leading zeros, and nothing behind them. A second
// encoding of the same signature is refused.
func checkNumbers(id packet.PublicKeyAlgorithm, b []byte) error {
	count := 0
	switch id {
	case packet.PubKeyAlgoRSA:
		count = 1
	case packet.PubKeyAlgoECDSA, packet.PubKeyAlgoEdDSA:
		count = 2
	case packet.PubKeyAlgoEd25519:
		if len(b) != 64 {
			return fmt.Errorf("has %d bytes of Ed25519 signature, want 64", len(b))
		}
		return nil
	default:
		return fmt.Errorf("is by a key of the kind %s, want RSA, ECDSA or Ed25519", algorithm(id))
	}
	for range count {
		if len(b) < 2 {
			return errors.New("ends before its last number")
		}
		width := int(binary.BigEndian.Uint16(b))
		size := (width + 7) / 8
		b = b[2:]
		if width == 0 || size > len(b) || bits.Len8(b[0]) != (width-1)%8+1 {
			return fmt.Errorf("has a number of %d bits that is cut short or padded", width)
		}
		b = b[size:]
	}
	if len(b) > 0 {
		return fmt.Errorf("has %d bytes too many", len(b))
	}
	return nil
}
