package gpt

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
)

// GUID is a globally unique identifier, its bytes in the order of its text
// form. On disk the first three fields are little-endian (UEFI 2.10, appendix
// A); only this package's reader and writer see that order.
type GUID [16]byte

// ParseGUID reads the text form, xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, in
// either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("parse GUID %q: want 8-4-4-4-12 hexadecimal digits", s)
	}
	digits := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(g[:], []byte(digits)); err != nil {
		return GUID{}, fmt.Errorf("parse GUID %q: %w", s, err)
	}
	return g, nil
}

// MustGUID is ParseGUID for constants; it panics where that fails.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// RandomGUID makes a version 4 UUID (RFC 9562, section 5.4) of 16 bytes read
// from random.
func RandomGUID(random io.Reader) (GUID, error) {
	var g GUID
	if _, err := io.ReadFull(random, g[:]); err != nil {
		return GUID{}, fmt.Errorf("read 16 random bytes for a GUID: %w", err)
	}
	g[6] = g[6]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g, nil
}

// String returns the text form in lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// IsZero reports whether g is the GUID of nothing: an unused entry's type.
func (g GUID) IsZero() bool { return g == GUID{} }

// Encoded returns the bytes as GPT and UEFI have them: the first three groups
// are little-endian (UEFI 2.10, appendix A).
func (g GUID) Encoded() [16]byte { return g.swapped() }

// swapped turns the text order into the disk's, and back.
func (g GUID) swapped() GUID {
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g
}
