package scan

import (
	"encoding/binary"
	"slices"
)

// secretPacket reports whether an OpenPGP packet with a secret key or subkey
// starts here (RFC 9580, sections 4.2 and 5.5.3; of version 3 to 6). A stub
// whose key lies on a card is none.
func secretPacket(data []byte) bool {
	if len(data) < 48 || !secretTag[data[0]] {
		return false
	}
	body := packetBody(data)
	if len(body) < 40 || body[0] < 3 || body[0] > 6 || binary.BigEndian.Uint32(body[1:]) < 631152000 {
		return false // no version, or of before 1990
	}
	r := body[5:]
	switch body[0] {
	case 3:
		r = r[2:] // days that it is valid
	case 5, 6:
		if len(r) < 6 || int(binary.BigEndian.Uint32(r[1:])) > len(r)-5 {
			return false
		}
		r = slices.Concat(r[:1], r[5:]) // the length of the public part
	}
	algorithm := r[0]
	r, ok := publicPart(algorithm, r[1:])
	return ok && len(r) >= 16 && secretPart(body[0], algorithm, r)
}

// secretTag are the first bytes of packets 5 and 7, of the old format with a
// length and of the new one.
var secretTag = [256]bool{0x94: true, 0x95: true, 0x96: true, 0x9c: true, 0x9d: true, 0x9e: true, 0xc5: true, 0xc7: true}

// maxPacket is more than any key has, in bytes. What a large file seems to hold in
// many places is longer, and would be copied each time.
const maxPacket = 4 << 20

// packetBody returns what a packet holds; none when it does not end in the
// data, or is too long for a key.
func packetBody(data []byte) []byte {
	header, size := 2, int(data[1])
	switch {
	case data[0]&0x40 == 0 && data[0]&3 == 1:
		header, size = 3, int(binary.BigEndian.Uint16(data[1:]))
	case data[0]&0x40 == 0 && data[0]&3 == 2, data[0]&0x40 != 0 && data[1] == 255:
		at := 1 + int(data[0]>>6&1)
		header, size = at+4, int(binary.BigEndian.Uint32(data[at:]))
	case data[0]&0x40 != 0 && data[1] >= 224:
		return nil // in parts, which keys never are
	case data[0]&0x40 != 0 && data[1] >= 192:
		header, size = 3, (int(data[1])-192)<<8+int(data[2])+192
	}
	if size > min(len(data)-header, maxPacket) {
		return nil
	}
	return data[header : header+size]
}

// publicPart skips the public numbers of an algorithm.
func publicPart(algorithm byte, r []byte) ([]byte, bool) {
	numbers := 0
	switch algorithm {
	case 1, 2, 3: // RSA, its modulus not shorter than any that was ever in use
		if len(r) < 64 || binary.BigEndian.Uint16(r) < 512 {
			return nil, false
		}
		numbers = 2
	case 16:
		numbers = 3 // Elgamal
	case 17:
		numbers = 4 // DSA
	case 18, 19, 22: // ECDH, ECDSA, EdDSA: the name of a curve, a point
		if len(r) < 1 || r[0] < 3 || int(r[0]) > 16 {
			return nil, false
		}
		r, numbers = skip(r, 1+int(r[0])), 1
	case 25, 27: // X25519, Ed25519
		return skip(r, 32), true
	case 26:
		return skip(r, 56), true
	case 28:
		return skip(r, 57), true
	default:
		return nil, false
	}
	for range numbers {
		var ok bool
		if r, ok = number(r); !ok {
			return nil, false
		}
	}
	if algorithm == 18 { // how a key is derived
		if len(r) < 4 || r[0] != 3 || r[1] != 1 {
			return nil, false
		}
		r = r[4:]
	}
	return r, true
}

// number skips a number whose bits are as many as it says.
func number(r []byte) ([]byte, bool) {
	if len(r) < 3 {
		return nil, false
	}
	bits := int(binary.BigEndian.Uint16(r))
	size := (bits + 7) / 8
	if bits == 0 || size > len(r)-2 || r[2]>>((bits-1)%8) != 1 {
		return nil, false
	}
	return r[2+size:], true
}

// secretPart reports whether this is how the secret numbers are kept (RFC 9580,
// section 5.5.3), so closely that chance does not make it.
func secretPart(version, algorithm byte, r []byte) bool {
	usage := r[0]
	if r = r[1:]; usage == 0 {
		return clearPart(version, algorithm, r)
	}
	if usage <= 13 {
		return version < 5 && algorithm <= 17 && len(r) > 64 // encrypted with that cipher and MD5
	}
	if usage < 253 || len(r) < 32 {
		return false
	}
	if version >= 5 {
		r = r[1:] // the length of what follows
	}
	cipher := r[0]
	if r = r[1:]; cipher < 1 || cipher > 13 {
		return false
	}
	if usage == 253 {
		if r[0] < 1 || r[0] > 3 {
			return false
		}
		r = r[1:]
	}
	if version == 6 {
		r = r[1:] // the length of the specifier
	}
	return specifier(r)
}

// specifier reports whether this is how a password becomes a key (section
// 3.7.1).
func specifier(r []byte) bool {
	if r[0] == 4 {
		return len(r) > 36 && r[17] > 0 && r[18] > 0 && r[19] < 32
	}
	hash := r[1] >= 1 && r[1] <= 3 || r[1] >= 8 && r[1] <= 14
	return hash && (r[0] == 0 || r[0] == 1 || r[0] == 3)
}

// clearPart reports whether secret numbers stand here in the clear, with their
// sum.
func clearPart(version, algorithm byte, r []byte) bool {
	if version == 5 {
		r = skip(r, 5)
	}
	rest, numbers := r, 1
	switch algorithm {
	case 1, 2, 3:
		numbers = 4
	case 25, 27:
		rest, numbers = skip(r, 32), 0
	case 26:
		rest, numbers = skip(r, 56), 0
	case 28:
		rest, numbers = skip(r, 57), 0
	}
	for range numbers {
		var ok bool
		if rest, ok = number(rest); !ok {
			return false
		}
	}
	if version == 6 {
		return r != nil && len(rest) == 0
	}
	var sum uint16
	for _, b := range r[:len(r)-len(rest)] {
		sum += uint16(b)
	}
	return len(rest) == 2 && binary.BigEndian.Uint16(rest) == sum
}
