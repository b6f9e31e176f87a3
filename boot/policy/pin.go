package policy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/argon2"

	"halogenos.internal/boot/words"
)

// Labels of what is derived from a PIN. Part of the format, as those of the secret.
const (
	labelPINAuth = "halogenos/2/pin-auth"
	labelPINLUKS = "halogenos/2/luks-keyslot"
	labelPINKept = "halogenos/2/pin-kept"
	labelLockout = "halogenos/2/tpm-lockout"
)

// The bounds of a stretch. What a header asks for is not authenticated: less than the
// lower ones would let anyone who wrote it guess the PIN from what is computed with it, and
// more than the upper ones, which are those of LUKS2, takes minutes. Memory is in KiB.
const (
	MinStretchMemory = 32 << 10
	maxStretchMemory = 4 << 20
	minStretchPasses = 3
	maxStretchLanes  = 4
	maxStretchWork   = 1 << 30 // KiB times passes
)

// MinPIN and MaxPIN bound a PIN or passphrase, in bytes.
const (
	MinPIN = 4
	MaxPIN = 512
)

// Salt is what tells the same PIN on two machines apart. It is not a secret.
type Salt [16]byte

// MarshalText implements encoding.TextMarshaler.
func (s Salt) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Salt) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) {
		return fmt.Errorf("salt: %d characters, want %d", len(text), 2*len(s))
	}
	if _, err := hex.Decode(s[:], text); err != nil {
		return fmt.Errorf("salt: %w", err)
	}
	return nil
}

// A Stretch is what it costs to try one PIN: Argon2id (RFC 9106), version 1.3.
type Stretch struct {
	Salt   Salt   `json:"salt"`
	Passes uint32 `json:"passes"`
	Memory uint32 `json:"memory"` // KiB
	Lanes  uint8  `json:"lanes"`
}

// NewStretch makes one with a salt of its own.
func NewStretch(rand io.Reader, passes, memory uint32, lanes uint8) (Stretch, error) {
	s := Stretch{Passes: passes, Memory: memory, Lanes: lanes}
	if _, err := io.ReadFull(rand, s.Salt[:]); err != nil {
		return Stretch{}, fmt.Errorf("making a PIN's salt: %w", err)
	}
	return s, s.Validate()
}

// Validate reports a stretch that costs too little or too much.
func (s Stretch) Validate() error {
	if s.Passes < minStretchPasses || s.Memory < MinStretchMemory || s.Memory > maxStretchMemory || s.Lanes < 1 || s.Lanes > maxStretchLanes ||
		uint64(s.Passes)*uint64(s.Memory) > maxStretchWork {
		return fmt.Errorf("a PIN stretched by argon2id with %d passes over %d KiB in %d lanes", s.Passes, s.Memory, s.Lanes)
	}
	return nil
}

// Bytes is how much memory it takes.
func (s Stretch) Bytes() uint64 { return uint64(s.Memory) << 10 }

// ErrPINLength refuses a PIN that is too short or too long.
var ErrPINLength = words.Errorf(words.PINLength, MinPIN, MaxPIN)

// PIN stretches what somebody typed, which stays the caller's. The caller wipes the PIN.
func (s Stretch) PIN(typed []byte) (*PIN, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if len(typed) < MinPIN || len(typed) > MaxPIN {
		return nil, ErrPINLength
	}
	key := argon2.IDKey(typed, s.Salt[:], s.Passes, s.Memory, s.Lanes, 32)
	defer clear(key)
	return &PIN{stretch: s, key: [32]byte(key)}, nil
}

// LockoutAuth returns the authorisation that keeps others from setting back the TPM's count
// of wrong PINs, which the caller wipes. It follows from the volume key, which stays while
// machine secrets and PINs change: who has that needs no PIN.
func LockoutAuth(volumeKey []byte) []byte {
	auth := volumeMAC(volumeKey, labelLockout)
	return withoutZeros(auth[:])
}

// A PIN is a PIN or passphrase once it was stretched. From it follow the authorisation
// value that the TPM asks for, and a half of what opens the keyslot. Like a Secret it is
// never printed, and its holder wipes it.
type PIN struct {
	stretch Stretch
	key     [32]byte
}

// Stretch is what the PIN was stretched by.
func (p *PIN) Stretch() Stretch { return p.stretch }

// Auth returns the sealed object's authorisation value, which the caller wipes.
func (p *PIN) Auth() []byte { return withoutZeros(derive(p.key[:], labelPINAuth, 32)) }

// withoutZeros has an authorisation value hold no zero byte. A TPM takes those off its end
// (Part 1, 19.6.4.3), and go-tpm ends the value at the first one, wherever that is.
func withoutZeros(auth []byte) []byte {
	for i, b := range auth {
		if b == 0 {
			auth[i] = 1
		}
	}
	return auth
}

// Equal compares in constant time.
func (p *PIN) Equal(o *PIN) bool {
	a, b := Secret{key: p.key}, Secret{key: o.key}
	defer a.Wipe()
	defer b.Wipe()
	return p.stretch == o.stretch && a.Equal(&b)
}

// Wipe overwrites the PIN. Without one it does nothing.
func (p *PIN) Wipe() {
	if p != nil {
		clear(p.key[:])
	}
}

// Format implements fmt.Formatter, so that no log ever holds the PIN.
func (p PIN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[PIN]") }

// MarshalJSON refuses: a PIN is kept by Keep, or not at all.
func (p PIN) MarshalJSON() ([]byte, error) {
	return nil, errors.New("the PIN is not to be stored in the clear")
}

// Keep encrypts the stretched PIN under the volume key, for anyone who opens the volume
// otherwise and has to seal again: without it the machine would lose its PIN. Not under
// the machine secret, which a TPM that was taken apart gives up.
func (p *PIN) Keep(rand io.Reader, volumeKey []byte) ([]byte, error) {
	k := keptKey(volumeKey)
	defer k.Wipe()
	return k.Box(rand, p.stretch.purpose(), p.key[:])
}

// KeptPIN opens what Keep returned. It belongs to this stretch alone.
func KeptPIN(volumeKey, box []byte, s Stretch) (*PIN, error) {
	k := keptKey(volumeKey)
	defer k.Wipe()
	plain, err := k.Unbox(s.purpose(), box)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	p := &PIN{stretch: s}
	if len(plain) != len(p.key) {
		return nil, fmt.Errorf("the PIN that was kept has %d bytes, want %d", len(plain), len(p.key))
	}
	copy(p.key[:], plain)
	return p, nil
}

func keptKey(volumeKey []byte) *Secret { return &Secret{key: volumeMAC(volumeKey, labelPINKept)} }

func (s Stretch) purpose() string {
	return fmt.Sprintf("pin/%x/%d/%d/%d", s.Salt, s.Passes, s.Memory, s.Lanes)
}
