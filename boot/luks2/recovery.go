package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// RecoveryTokenType is the type of the token that marks a recovery keyslot, as
// systemd-cryptenroll names it.
const RecoveryTokenType = "systemd-recovery"

const (
	recoveryBytes = 32
	recoveryGroup = 8 // characters between two dashes
	recoveryText  = recoveryBytes*2 + recoveryBytes*2/recoveryGroup - 1

	// modhex is hexadecimal in letters that lie alike on most keyboards.
	modhex = "cbdefghijklnrtuv"
)

// RecoveryKey is a random passphrase of 256 bits for people to write down. It
// prints as a placeholder: only Passphrase shows it. Whoever holds it wipes it.
type RecoveryKey struct {
	key [recoveryBytes]byte
}

// NewRecoveryKey makes a recovery key.
func NewRecoveryKey(rand io.Reader) (RecoveryKey, error) {
	var k RecoveryKey
	if _, err := io.ReadFull(rand, k.key[:]); err != nil {
		return RecoveryKey{}, fmt.Errorf("luks2: new recovery key: %w", err)
	}
	return k, nil
}

// ParseRecoveryKey reads what somebody typed: modhex digits of either case.
// Dashes and white space count for nothing, wherever they are. The error does
// not repeat the text.
func ParseRecoveryKey(text []byte) (RecoveryKey, error) {
	var k RecoveryKey
	n := 0
	for i, c := range text {
		if bytes.IndexByte([]byte("- \t\r\n"), c) >= 0 {
			continue
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		digit := bytes.IndexByte([]byte(modhex), c)
		if digit < 0 {
			k.Wipe()
			return RecoveryKey{}, fmt.Errorf("character %d is none that a recovery key has (%s)", i+1, modhex)
		}
		if n < 2*recoveryBytes {
			k.key[n/2] = k.key[n/2]<<4 | byte(digit)
		}
		n++
	}
	if n != 2*recoveryBytes {
		k.Wipe()
		return RecoveryKey{}, fmt.Errorf("the recovery key has %d letters, and %d were typed", 2*recoveryBytes, n)
	}
	return k, nil
}

// Passphrase returns the key in the one form that opens the keyslot: eight
// groups of eight lower-case letters with dashes between them. The caller
// wipes it.
func (k *RecoveryKey) Passphrase() []byte {
	b := make([]byte, 0, recoveryText)
	for i, c := range k.key {
		if i > 0 && i%(recoveryGroup/2) == 0 {
			b = append(b, '-')
		}
		b = append(b, modhex[c>>4], modhex[c&15])
	}
	return b
}

// Bytes returns the 32 bytes that the text stands for. The caller wipes them.
func (k *RecoveryKey) Bytes() []byte { return bytes.Clone(k.key[:]) }

// Wipe overwrites the key.
func (k *RecoveryKey) Wipe() { Wipe(k.key[:]) }

// Format prints a placeholder, under every verb.
func (RecoveryKey) Format(f fmt.State, _ rune) { io.WriteString(f, "(recovery key)") }

// MarshalJSON refuses: a recovery key is not to get into a file by accident.
func (RecoveryKey) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a recovery key is not marshalled")
}

// RecoveryToken returns the token that marks a recovery keyslot.
func RecoveryToken(slot int) Token {
	return Token{Type: RecoveryTokenType, Keyslots: []int{slot}}
}
