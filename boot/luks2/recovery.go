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

// RecoveryLetters is how many letters a recovery key has.
const RecoveryLetters = recoveryBytes * 2

const (
	recoveryBytes = 32
	recoveryGroup = 8 // characters between two dashes
	recoveryText  = recoveryBytes*2 + recoveryBytes*2/recoveryGroup - 1

	recoveryGroups = RecoveryLetters / recoveryGroup

	// modhex is hexadecimal in letters that lie alike on most keyboards.
	modhex = "cbdefghijklnrtuv"
)

// RecoveryKey is a random passphrase for people to write down: 256 bits in keys of
// earlier releases, 224 and a check for each group since. It prints as a placeholder:
// only Passphrase shows it. Its holder wipes it.
type RecoveryKey struct {
	key [recoveryBytes]byte
}

// NewRecoveryKey makes a recovery key with checks.
func NewRecoveryKey(rand io.Reader) (RecoveryKey, error) {
	var k RecoveryKey
	if _, err := io.ReadFull(rand, k.key[:]); err != nil {
		return RecoveryKey{}, fmt.Errorf("luks2: new recovery key: %w", err)
	}
	for group := range recoveryGroups {
		last := &k.key[(group+1)*recoveryGroup/2-1]
		*last = *last&0xf0 | k.check(group)
	}
	return k, nil
}

// Checked reports whether the key has checks that hold. One without has them by chance
// once in 2^32.
func (k *RecoveryKey) Checked() bool {
	for group := range recoveryGroups {
		if k.key[(group+1)*recoveryGroup/2-1]&0x0f != k.check(group) {
			return false
		}
	}
	return true
}

// check is what the last letter of a group has to be.
func (k *RecoveryKey) check(group int) byte {
	var digits [recoveryGroup]byte
	defer Wipe(digits[:])
	for i := range digits {
		n := group*recoveryGroup + i
		digits[i] = k.key[n/2] >> (4 * (1 - n%2)) & 0x0f
	}
	return check(group, digits[:recoveryGroup-1])
}

// check returns the last letter of a group by those before it: a sum over GF(16) in which
// each place has a weight of its own, and the last the weight 1. One letter that is wrong
// or two that changed places always make it wrong, and so does a group in the place of
// another; anything else does so fifteen times of sixteen.
func check(group int, digits []byte) byte {
	sum, weight := byte(group), byte(1)
	for _, d := range digits {
		weight = times(weight, 2)
		sum ^= times(weight, d)
	}
	return sum
}

// times multiplies in GF(16) with the polynomial x^4+x+1.
func times(a, b byte) (product byte) {
	for range 4 {
		product ^= a * (b & 1)
		b >>= 1
		a = a<<1 ^ a>>3*0x13
	}
	return product
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
