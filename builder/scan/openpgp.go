package scan

import (
	"encoding/binary"
	"slices"
)

// secretPacket reports whether an OpenPGP packet with a secret key or subkey
// starts here (RFC 9580, sections 4.2 and 5.5.3; of version 3 to 6). A stub
// whose key lies on a card is none. All lengths must fit each other: nothing of
// it is fixed, and there are gigabytes in which chance could make one.
func secretPacket(data []byte) bool {
	if len(data) < 48 || !secretTag[data[0]] {
		return false
	}
	body := packetBody(data)
	if len(body) < 40 || body[0] < 3 || body[0] > 6 {
		return false
	}
	if made := binary.BigEndian.Uint32(body[1:]); made < 631152000 || made > 2524608000 {
		return false // before 1990 or after 2049
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
	if body[0] == 3 && algorithm > 3 {
		return false
	}
	public := r[1:]
	r, ok := publicPart(algorithm, public)
	return ok && len(r) >= 16 && secretPart(body[0], algorithm, len(public)-len(r), r)
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

// curves are the names of the curves of RFC 9580, section 9.2, and of those of
// Brainpool and secp256k1 that GnuPG knows.
var curves = []string{
	"\x2a\x86\x48\xce\x3d\x03\x01\x07", "\x2b\x81\x04\x00\x22", "\x2b\x81\x04\x00\x23", "\x2b\x81\x04\x00\x0a",
	"\x2b\x24\x03\x03\x02\x08\x01\x01\x07", "\x2b\x24\x03\x03\x02\x08\x01\x01\x0b", "\x2b\x24\x03\x03\x02\x08\x01\x01\x0d",
	"\x2b\x06\x01\x04\x01\xda\x47\x0f\x01", "\x2b\x06\x01\x04\x01\x97\x55\x01\x05\x01", "\x2b\x65\x70", "\x2b\x65\x71", "\x2b\x65\x6e", "\x2b\x65\x6f",
}

// publicPart skips the public numbers of an algorithm.
func publicPart(algorithm byte, r []byte) ([]byte, bool) {
	switch algorithm {
	case 1, 2, 3: // RSA: a modulus, an exponent that no program makes long
		return numbersOf(r, 512, 64)
	case 16: // Elgamal: p, g, y
		return numbersOf(r, 512, 0, 0)
	case 17: // DSA: p, q, g, y
		return numbersOf(r, 512, 512, 0, 0)
	case 18, 19, 22: // ECDH, ECDSA, EdDSA: the name of a curve, a point
		if len(r) < 1 || !slices.Contains(curves, string(r[1:1+min(len(r)-1, int(r[0]))])) {
			return nil, false
		}
		r, ok := numbersOf(r[1+int(r[0]):], 200)
		if algorithm == 18 && ok { // how a key is derived
			if len(r) < 4 || r[0] != 3 || r[1] != 1 {
				return nil, false
			}
			r = r[4:]
		}
		return r, ok
	case 25, 27: // X25519, Ed25519
		return skip(r, 32), true
	case 26:
		return skip(r, 56), true
	case 28:
		return skip(r, 57), true
	}
	return nil, false
}

const maxBits = 16384 // of a number

// numbersOf skips numbers. The first has at least so many bits, is odd, and is
// not larger than any key's; the others have at most so many, or, with 0, as
// many as the first.
func numbersOf(r []byte, first int, others ...int) ([]byte, bool) {
	if len(r) < 3 {
		return nil, false
	}
	bits := int(binary.BigEndian.Uint16(r))
	size := (bits + 7) / 8
	if bits < first || bits > maxBits || size+2 > len(r) || r[1+size]&1 == 0 && len(others) > 0 {
		return nil, false
	}
	r, ok := number(r)
	for _, limit := range others {
		if !ok || len(r) < 3 {
			return nil, false
		}
		if limit == 0 {
			limit = bits
		}
		if n := int(binary.BigEndian.Uint16(r)); n > limit || n < 2 {
			return nil, false
		}
		r, ok = number(r)
	}
	return r, ok
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

// blockSize are those of the symmetric ciphers by their number (section 9.3), in
// bytes; 0 is for what is none.
var blockSize = [...]int{0, 8, 8, 8, 8, 0, 0, 16, 16, 16, 16, 16, 16, 16}

// secretPart reports whether this is how the secret numbers are kept (RFC 9580,
// section 5.5.3), so closely that chance does not make it. public is the length
// of the public ones.
func secretPart(version, algorithm byte, public int, r []byte) bool {
	usage := r[0]
	if r = r[1:]; usage == 0 {
		return clearPart(version, algorithm, r)
	}
	if int(usage) < len(blockSize) {
		n := blockSize[usage] // encrypted with that cipher and MD5
		return n > 0 && version < 5 && algorithm <= 17 && len(r) > n && secretLength(algorithm, public, len(r)-n-2)
	}
	if usage < 253 || len(r) < 32 {
		return false
	}
	if version >= 5 {
		if version == 6 && int(r[0]) > len(r)-1 || r[0] < 4 {
			return false
		}
		r = r[1:] // the length of what follows
	}
	cipher := r[0]
	if r = r[1:]; int(cipher) >= len(blockSize) || blockSize[cipher] == 0 {
		return false
	}
	start, tail := blockSize[cipher], 20
	switch usage {
	case 255:
		tail = 2
	case 253:
		if r[0] < 1 || r[0] > 3 {
			return false
		}
		start, tail = []int{16, 15, 12}[r[0]-1], 16
		r = r[1:]
	}
	if version == 6 {
		r = r[1:] // the length of the specifier
	}
	n := specifier(r)
	if n == 0 || len(r) < n+start {
		return false
	}
	r = r[n+start:]
	if version == 5 {
		r = skip(r, 4) // the length of what follows
	}
	return secretLength(algorithm, public, len(r)-tail)
}

// secretLength reports whether secret numbers of an algorithm can take so many
// bytes, where the public ones take the others.
func secretLength(algorithm byte, public, secret int) bool {
	switch algorithm {
	case 1, 2, 3: // d, p, q, u, of twice and a half the length of n
		return secret >= public*2-16 && secret <= public*5/2+48
	case 16:
		return secret >= 16 && secret <= public/3+8 // x, of the length of p at most
	case 17:
		return secret >= 16 && secret <= 68 // x, of the length of q
	case 18, 19, 22:
		return secret >= 24 && secret <= 70
	case 25, 27:
		return secret == 32
	case 26:
		return secret == 56
	case 28:
		return secret == 57
	}
	return false
}

// specifier returns the length of how a password becomes a key (section 3.7.1),
// 0 where this is none.
func specifier(r []byte) int {
	size := map[byte]int{0: 2, 1: 10, 3: 11, 4: 20}[r[0]]
	if size == 0 || len(r) < size {
		return 0
	}
	if r[0] == 4 {
		if r[17] == 0 || r[18] == 0 || r[19] >= 32 {
			return 0
		}
		return size
	}
	if r[1] >= 1 && r[1] <= 3 || r[1] >= 8 && r[1] <= 14 {
		return size
	}
	return 0
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
