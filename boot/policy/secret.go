package policy

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// Labels that separate what is derived from one secret. They are part of the
// format: a changed label is a key that opens nothing.
const (
	labelLUKS        = "halogenos/1/luks-keyslot"
	labelNVKey       = "halogenos/1/nv-write-key"
	labelBox         = "halogenos/1/box/"
	labelEscrow      = "halogenos/1/escrow"
	labelFingerprint = "halogenos/1/volume-fingerprint"
	labelVolumeEvent = "halogenos/1/volume-pcr15"
)

// Secret is the machine secret: the one thing sealed to the TPM, from which
// everything else that only this machine may do is derived. The caller that unseals or
// makes one owns it and must Wipe it before the root is handed over.
//
// On a machine with a PIN it goes along with that: what is sealed or opened by it then
// takes both.
//
// A Secret is never printed: every formatting verb gives a placeholder.
type Secret struct {
	key [32]byte
	pin PIN // of no stretch: none
	// guarded: it goes along with a PIN, whether or not that one is known here.
	guarded bool
}

// NewSecret reads a fresh secret from rand, which must be a cryptographic source.
func NewSecret(rand io.Reader) (*Secret, error) {
	s := new(Secret)
	if _, err := io.ReadFull(rand, s.key[:]); err != nil {
		return nil, fmt.Errorf("making the machine secret: %w", err)
	}
	return s, nil
}

// SecretFrom takes over 32 bytes that were unsealed, and wipes the slice.
func SecretFrom(b []byte) (*Secret, error) {
	defer clear(b)
	s := new(Secret)
	if len(b) != len(s.key) {
		return nil, fmt.Errorf("machine secret: %d bytes, want %d", len(b), len(s.key))
	}
	copy(s.key[:], b)
	return s, nil
}

// Format implements fmt.Formatter, so that no log ever holds the secret.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[machine secret]") }

// MarshalJSON refuses: a secret is sealed or boxed, never stored.
func (s Secret) MarshalJSON() ([]byte, error) {
	return nil, errors.New("the machine secret is not to be stored in the clear")
}

// Bytes returns a copy of the secret, for sealing. The caller wipes it.
func (s *Secret) Bytes() []byte { return append([]byte(nil), s.key[:]...) }

// Equal compares in constant time.
func (s *Secret) Equal(o *Secret) bool { return hmac.Equal(s.key[:], o.key[:]) }

// Wipe overwrites the secret, and its PIN.
func (s *Secret) Wipe() {
	clear(s.key[:])
	s.pin.Wipe()
}

// SetPIN has the secret go along with a PIN from now on, or with none. The PIN is copied.
func (s *Secret) SetPIN(p *PIN) {
	s.pin.Wipe()
	s.pin = PIN{}
	if p != nil {
		s.pin = *p
	}
}

// PIN returns the PIN that goes along with the secret, which keeps it; nil for none.
func (s *Secret) PIN() *PIN {
	if s.pin.stretch == (Stretch{}) {
		return nil
	}
	return &s.pin
}

// Guarded reports whether the secret goes along with a PIN, which need not be known here:
// a recovery key's escrow says so, which nobody can change who has not the key, and of
// which there is a new one with each secret.
func (s *Secret) Guarded() bool { return s.guarded || s.PIN() != nil }

// Guard notes that it does.
func (s *Secret) Guard() { s.guarded = true }

// LUKSPassphrase returns the passphrase of the LUKS keyslot: 64 lower-case
// hexadecimal characters without an end of line, so that any tool can be given
// it. It has 256 bits of entropy and needs no costly key derivation. With a PIN
// it follows from both, and from neither alone. The caller wipes it.
func (s *Secret) LUKSPassphrase() []byte {
	key := s.keyslotKey()
	defer clear(key)
	return hex.AppendEncode(nil, key)
}

func (s *Secret) keyslotKey() []byte {
	p := s.PIN()
	if p == nil {
		return derive(s.key[:], labelLUKS, 32)
	}
	var both [64]byte
	defer clear(both[:])
	copy(both[:], s.key[:])
	copy(both[32:], p.key[:])
	return derive(both[:], labelPINLUKS, 32)
}

// Key returns a key derived for this purpose, for a package that encrypts by
// itself. The caller wipes it.
func (s *Secret) Key(purpose string) *[32]byte {
	key := derive(s.key[:], labelBox+purpose, 32)
	defer clear(key)
	out := [32]byte(key)
	return &out
}

// WriteKey returns the P-256 key whose signature lets the TPM write the NV
// index. Like the secret it never leaves the initramfs.
func (s *Secret) WriteKey() (*ecdsa.PrivateKey, error) {
	// Extra random bits and one reduction: FIPS 186-5, A.2.1. 48 bytes leave a
	// bias below 2^-128.
	wide := derive(s.key[:], labelNVKey, 48)
	defer clear(wide)
	curve := elliptic.P256()
	one := big.NewInt(1)
	d := new(big.Int).SetBytes(wide)
	d.Mod(d, new(big.Int).Sub(curve.Params().N, one)).Add(d, one)
	raw := d.FillBytes(make([]byte, 32))
	defer clear(raw)
	clear(d.Bits())
	key, err := ecdsa.ParseRawPrivateKey(curve, raw)
	if err != nil {
		return nil, fmt.Errorf("deriving the NV write key: %w", err)
	}
	return key, nil
}

// Box encrypts what only this machine's initramfs may read, such as the Secure
// Boot private keys: AES-256-GCM under a key derived for this purpose, behind
// a random nonce. The purpose must be given again to open it.
func (s *Secret) Box(rand io.Reader, purpose string, plain []byte) ([]byte, error) {
	aead, err := s.aead(purpose)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("boxing %s: %w", purpose, err)
	}
	return aead.Seal(nonce, nonce, plain, []byte(purpose)), nil
}

// Unbox opens what Box returned for the same purpose. The caller wipes it.
func (s *Secret) Unbox(purpose string, box []byte) ([]byte, error) {
	aead, err := s.aead(purpose)
	if err != nil {
		return nil, err
	}
	n := aead.NonceSize()
	if len(box) < n+aead.Overhead() {
		return nil, fmt.Errorf("opening the box with %s: %d bytes, want at least %d", purpose, len(box), n+aead.Overhead())
	}
	plain, err := aead.Open(nil, box[:n], box[n:], []byte(purpose))
	if err != nil {
		return nil, fmt.Errorf("opening the box with %s: it was altered, or is another machine's", purpose)
	}
	return plain, nil
}

func (s *Secret) aead(purpose string) (cipher.AEAD, error) {
	key := derive(s.key[:], labelBox+purpose, 32)
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// What an escrow has: a machine secret, or one that goes along with a PIN, which no release
// before reads.
const (
	escrowPurpose = "machine-secret"
	escrowGuarded = "machine-secret-with-pin"
)

// Escrow encrypts the machine secret under the recovery key, given as the 32
// bytes that its text stands for. Without it a machine whose TPM refuses would
// be opened by the recovery key and still could neither accept the new
// measurements (that takes the write key) nor sign its next UKI. Never to be
// used with a passphrase that a person thought up: nothing slows a guess down.
func Escrow(rand io.Reader, recovery []byte, s *Secret) ([]byte, error) {
	k, err := escrowKey(recovery)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	plain := s.Bytes()
	defer clear(plain)
	purpose := escrowPurpose
	if s.Guarded() {
		purpose = escrowGuarded
	}
	return k.Box(rand, purpose, plain)
}

// OpenEscrow returns the machine secret that Escrow encrypted.
func OpenEscrow(recovery, escrow []byte) (*Secret, error) {
	k, err := escrowKey(recovery)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	plain, err := k.Unbox(escrowPurpose, escrow)
	if err == nil {
		return SecretFrom(plain)
	}
	if plain, gerr := k.Unbox(escrowGuarded, escrow); gerr == nil {
		s, err := SecretFrom(plain)
		if err == nil {
			s.Guard()
		}
		return s, err
	}
	return nil, err
}

func escrowKey(recovery []byte) (*Secret, error) {
	if len(recovery) != 32 {
		return nil, fmt.Errorf("recovery key: %d bytes, want 32", len(recovery))
	}
	return SecretFrom(derive(recovery, labelEscrow, 32))
}

// VolumeFingerprint returns what the NV record holds about the root partition,
// so that a volume put in its place is found out. It tells nothing about the
// key, which has at least 256 bits.
func VolumeFingerprint(volumeKey []byte) [32]byte { return volumeMAC(volumeKey, labelFingerprint) }

// VolumeEvent returns what PCR 15 is extended with once the volume is open.
func VolumeEvent(volumeKey []byte) [32]byte { return volumeMAC(volumeKey, labelVolumeEvent) }

func volumeMAC(key []byte, label string) (out [32]byte) {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, label)
	h.Sum(out[:0])
	return out
}

// derive is HKDF-SHA256 (RFC 5869) without a salt: the secrets are uniformly
// random already.
func derive(secret []byte, label string, size int) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, label, size)
	if err != nil { // only for more than 255 hashes' worth
		panic(err)
	}
	return key
}
