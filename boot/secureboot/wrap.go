package secureboot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/gpt"
)

// The private encoding, which only ever exists in memory: "HSBKEYS1", the owner
// GUID, then for PK, KEK and db the key (PKCS #1, DER) and the certificate
// (DER), each behind its length in bytes as a little-endian uint32.
//
// The wrapped form, which is stored: "HSBWRAP1", the owner GUID, the nonce,
// and the private encoding under AES-256-GCM. The magic, the owner and the
// caller's context are authenticated with it.
const (
	privateMagic = "HSBKEYS1"
	wrapMagic    = "HSBWRAP1"
	guidSize     = len(gpt.GUID{})
	nonceSize    = 12
	tagSize      = 16
	headerSize   = len(wrapMagic) + guidSize

	// maxPart bounds one key or certificate, in bytes; ours have about 1,200.
	maxPart = 8 << 10
	// MaxWrapped bounds the wrapped form in bytes.
	MaxWrapped = headerSize + nonceSize + len(privateMagic) + guidSize + 6*(4+maxPart) + tagSize
)

// ErrUnwrap is an authentication failure: another key, another context, or
// bytes that were changed. Which of them it is cannot be told.
var ErrUnwrap = errors.New("wrapped Secure Boot keys do not authenticate")

// Wrap encrypts the set. The nonce comes from random, so a key must not wrap
// more than some billions of sets. context says what the result is for, and
// Unwrap must be told the same. The key stays the caller's, who wipes it.
func Wrap(random io.Reader, key *[32]byte, context string, k *KeySet) ([]byte, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	plain, err := k.marshal()
	if err != nil {
		return nil, fmt.Errorf("wrap Secure Boot keys: %w", err)
	}
	defer clear(plain)
	out := make([]byte, headerSize+nonceSize, headerSize+nonceSize+len(plain)+tagSize)
	copy(out, wrapMagic)
	copy(out[len(wrapMagic):], k.Owner[:])
	nonce := out[headerSize:]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("wrap Secure Boot keys: read a nonce of %d random bytes: %w", nonceSize, err)
	}
	return aead.Seal(out, nonce, plain, associated(out[:headerSize], context)), nil
}

// Unwrap is the reverse of Wrap. A set whose parts do not belong together is
// refused even though it authenticates. The set is the caller's, who wipes it.
func Unwrap(key *[32]byte, context string, wrapped []byte) (*KeySet, error) {
	plain, err := decrypt(key, context, wrapped)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	k, err := unmarshal(plain)
	if err != nil {
		return nil, fmt.Errorf("unwrap Secure Boot keys: %w", err)
	}
	return k, nil
}

// UnwrapCertificate returns the certificate of the Signature Database Key (db) whose
// private key is among wrapped keys. It is for callers that ask at each start whether a key
// opens them: to read a private key is to check its primes, which costs a slow machine
// 40 ms, and the other two are not read.
func UnwrapCertificate(key *[32]byte, context string, wrapped []byte) (*x509.Certificate, error) {
	plain, err := decrypt(key, context, wrapped)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	b, err := cutOwner(plain)
	for range 4 { // the key and the certificate of PK and KEK
		if err == nil {
			_, b, err = cutPart(b, maxPart)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("unwrap Secure Boot keys: %w", err)
	}
	var db Pair
	defer func() { wipeKey(db.Key) }()
	if _, err := db.unmarshal(b); err != nil {
		return nil, fmt.Errorf("unwrap Secure Boot keys: Signature Database Key: %w", err)
	}
	return db.Certificate, nil
}

// decrypt returns the private encoding; the caller wipes it.
func decrypt(key *[32]byte, context string, wrapped []byte) ([]byte, error) {
	if len(wrapped) < headerSize+nonceSize+tagSize || len(wrapped) > MaxWrapped {
		return nil, fmt.Errorf("wrapped Secure Boot keys have %d bytes, want %d to %d", len(wrapped), headerSize+nonceSize+tagSize, MaxWrapped)
	}
	if string(wrapped[:len(wrapMagic)]) != wrapMagic {
		return nil, errors.New("these are not wrapped Secure Boot keys")
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	header, nonce, sealed := wrapped[:headerSize], wrapped[headerSize:headerSize+nonceSize], wrapped[headerSize+nonceSize:]
	plain, err := aead.Open(nil, nonce, sealed, associated(header, context))
	if err != nil {
		return nil, ErrUnwrap
	}
	if owner := header[len(wrapMagic):]; len(plain) >= len(privateMagic)+guidSize && string(plain[len(privateMagic):][:guidSize]) != string(owner) {
		clear(plain)
		return nil, errors.New("unwrap Secure Boot keys: owner inside and outside differ")
	}
	return plain, nil
}

func newAEAD(key *[32]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("set up AES-256: %w", err)
	}
	return cipher.NewGCM(block)
}

// associated is unambiguous because the header's length is fixed.
func associated(header []byte, context string) []byte {
	return append(append(make([]byte, 0, len(header)+len(context)), header...), context...)
}

// marshal returns the private encoding; the caller wipes it. The buffer has
// its final size from the start, so that growing leaves no copy behind.
func (k *KeySet) marshal() ([]byte, error) {
	out := make([]byte, 0, len(privateMagic)+guidSize+6*(4+maxPart))
	out = append(out, privateMagic...)
	out = append(out, k.Owner[:]...)
	for _, role := range k.roles() {
		if err := role.pair.check(); err != nil {
			clear(out)
			return nil, fmt.Errorf("%s: %w", role.name, err)
		}
		key := x509.MarshalPKCS1PrivateKey(role.pair.Key)
		out = appendPart(out, key)
		clear(key)
		out = appendPart(out, role.pair.Certificate.Raw)
	}
	return out, nil
}

func appendPart(out, part []byte) []byte {
	out = binary.LittleEndian.AppendUint32(out, uint32(len(part)))
	return append(out, part...)
}

// unmarshal reads the private encoding; nothing that it returns refers to b.
func unmarshal(b []byte) (*KeySet, error) {
	rest, err := cutOwner(b)
	if err != nil {
		return nil, err
	}
	k := &KeySet{Owner: gpt.GUID(b[len(privateMagic):][:guidSize])}
	b = rest
	for _, role := range k.roles() {
		rest, err := role.pair.unmarshal(b)
		if err != nil {
			k.Wipe()
			return nil, fmt.Errorf("%s: %w", role.name, err)
		}
		b = rest
	}
	if len(b) != 0 {
		k.Wipe()
		return nil, fmt.Errorf("%d bytes follow the last certificate", len(b))
	}
	return k, nil
}

// cutOwner returns what follows the start of the private encoding and the owner.
func cutOwner(b []byte) (rest []byte, err error) {
	if len(b) < len(privateMagic)+guidSize || string(b[:len(privateMagic)]) != privateMagic {
		return nil, errors.New("private encoding does not begin as it should")
	}
	return b[len(privateMagic)+guidSize:], nil
}

func (p *Pair) unmarshal(b []byte) (rest []byte, err error) {
	key, b, err := cutPart(b, maxPart)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	certificate, b, err := cutPart(b, maxPart)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if p.Key, err = x509.ParsePKCS1PrivateKey(key); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if p.Certificate, err = x509.ParseCertificate(append([]byte(nil), certificate...)); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return b, p.check()
}

func cutPart(b []byte, most uint32) (part, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("length needs 4 bytes, %d are left", len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if n > most || uint64(n) > uint64(len(b)) {
		return nil, nil, fmt.Errorf("claims %d bytes, %d are left and %d allowed", n, len(b), most)
	}
	return b[:n], b[n:], nil
}
