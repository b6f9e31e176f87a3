package pgp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	armorLine = 76 // greatest number of base64 characters in a line, RFC 9580 section 6.2
	crcInit   = 0xb704ce
	crcPoly   = 0x1864cfb
)

// dearmor returns the bytes of an input that is binary or exactly one ASCII
// armor block of the given kind (RFC 9580, section 6): nothing before it,
// nothing but line ends behind it, no header that could change a meaning, and a
// checksum, when there is one, that is right. A decoder that looks for a block
// in whatever surrounds it lets two readers see two things.
func dearmor(input []byte, kind string) ([]byte, error) {
	if len(input) == 0 {
		return nil, errors.New("no data")
	}
	if input[0]&0x80 != 0 {
		return input, nil
	}
	if i := bytes.IndexFunc(input, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' && r != '\r' && r != '\t' }); i >= 0 {
		return nil, fmt.Errorf("neither an OpenPGP packet nor armor: byte %#02x at %d", input[i], i)
	}
	lines := strings.Split(strings.TrimRight(string(input), "\r\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\r")
	}
	if kind == "SIGNATURE" && (lines[0] == "-----BEGIN PGP SIGNED MESSAGE-----" || lines[0] == "-----BEGIN PGP MESSAGE-----") {
		return nil, fmt.Errorf("starts with %.40q, a signature with what it is over: want a detached signature alone, as gpg --detach-sign makes it", lines[0])
	}
	if want := "-----BEGIN PGP " + kind + "-----"; lines[0] != want {
		return nil, fmt.Errorf("starts with %.40q, want an OpenPGP packet or %q", lines[0], want)
	}
	if want := "-----END PGP " + kind + "-----"; lines[len(lines)-1] != want {
		return nil, fmt.Errorf("armor ends with %.40q, want %q", lines[len(lines)-1], want)
	}
	body, err := armorHeaders(lines[1 : len(lines)-1])
	if err != nil {
		return nil, err
	}
	return armorBody(body)
}

// armorHeaders skips the headers up to the empty line that ends them.
func armorHeaders(lines []string) ([]string, error) {
	for i, line := range lines {
		if line == "" {
			return lines[i+1:], nil
		}
		switch key, _, ok := strings.Cut(line, ": "); {
		case !ok:
			return nil, fmt.Errorf("armor header %.40q is not a key and a value", line)
		case key != "Version" && key != "Comment":
			return nil, fmt.Errorf("armor header %.40q is not known", key)
		}
	}
	return nil, errors.New("armor has no empty line before its data")
}

func armorBody(lines []string) ([]byte, error) {
	sum := ""
	if n := len(lines); n > 0 && strings.HasPrefix(lines[n-1], "=") {
		lines, sum = lines[:n-1], lines[n-1][1:]
	}
	for i, line := range lines {
		if len(line) == 0 || len(line) > armorLine {
			return nil, fmt.Errorf("line %d of the armor's data has %d characters, want 1 to %d", i+1, len(line), armorLine)
		}
		if strings.ContainsAny(line, "\r\n") { // which the decoder would skip
			return nil, fmt.Errorf("line %d of the armor's data holds a carriage return", i+1)
		}
	}
	out, err := base64.StdEncoding.Strict().DecodeString(strings.Join(lines, ""))
	if err != nil {
		return nil, fmt.Errorf("decode armor: %w", err)
	}
	if len(out) == 0 {
		return nil, errors.New("armor without data")
	}
	if sum == "" {
		return out, nil
	}
	want, err := base64.StdEncoding.Strict().DecodeString(sum)
	if err != nil || len(want) != 3 {
		return nil, fmt.Errorf("armor checksum %.10q is not one of 24 bits", sum)
	}
	if have := crc24(out); have != uint32(want[0])<<16|uint32(want[1])<<8|uint32(want[2]) {
		return nil, fmt.Errorf("armor checksum is %x, the data's %06x", want, have)
	}
	return out, nil
}

// crc24 is the checksum of RFC 9580, section 6.1.
func crc24(b []byte) uint32 {
	crc := uint32(crcInit)
	for _, c := range b {
		crc ^= uint32(c) << 16
		for range 8 {
			crc <<= 1
			if crc&0x1000000 != 0 {
				crc ^= crcPoly
			}
		}
	}
	return crc
}
