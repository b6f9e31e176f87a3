package pgp

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	_ "crypto/md5" // to forge what must be refused
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// A small writer of OpenPGP packets, from RFC 9580 and the standard library
// alone. It writes whatever it is told to, right or wrong, and shares no code
// with what it tests.

var epoch = time.Unix(1_800_000_000, 0).UTC()

type forgedKey struct {
	private ed25519.PrivateKey
	created time.Time
}

func newForgedKey(seed byte, created time.Time) forgedKey {
	return forgedKey{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)), created}
}

func mpi(b []byte) []byte {
	b = bytes.TrimLeft(b, "\x00")
	if len(b) == 0 {
		return []byte{0, 0}
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(8*len(b)-8+bits.Len8(b[0]))), b...)
}

func seconds(t time.Time) []byte { return binary.BigEndian.AppendUint32(nil, uint32(t.Unix())) }

// body is the public key's packet: version 4, EdDSA over Ed25519 as GnuPG 2.2
// writes it.
func (k forgedKey) body() []byte {
	out := append([]byte{4}, seconds(k.created)...)
	out = append(out, 22, 9, 0x2b, 6, 1, 4, 1, 0xda, 0x47, 0x0f, 1)
	return append(out, mpi(append([]byte{0x40}, k.private.Public().(ed25519.PublicKey)...))...)
}

// hashed is how a key enters into hashes.
func (k forgedKey) hashed() []byte {
	b := k.body()
	return append(binary.BigEndian.AppendUint16([]byte{0x99}, uint16(len(b))), b...)
}

func (k forgedKey) fingerprint() Fingerprint { return sha1.Sum(k.hashed()) }

func sub(id byte, data ...byte) []byte { return append([]byte{byte(len(data) + 1), id}, data...) }

const critical = 0x80

// forgedSig describes a signature; the zero value is a good one over a
// document, made at epoch.
type forgedSig struct {
	version  byte // 0: 4
	sigType  byte
	hash     byte // 0: SHA-256
	created  time.Time
	noIssuer bool
	hashed   []byte // more subpackets
	unhashed []byte
	tail     []byte // behind the numbers
}

func (s forgedSig) by(k forgedKey, data []byte) []byte {
	if s.created.IsZero() {
		s.created = epoch
	}
	if s.version == 0 {
		s.version = 4
	}
	if s.hash == 0 {
		s.hash = 8
	}
	area := sub(2, seconds(s.created)...)
	if !s.noIssuer {
		f := k.fingerprint()
		area = append(area, sub(33, append([]byte{4}, f[:]...)...)...)
		if s.sigType >= 0x10 { // without it, gpg does not know a signature by the key itself
			area = append(area, sub(16, f[12:]...)...)
		}
	}
	area = append(area, s.hashed...)
	head := []byte{s.version, s.sigType, 22, s.hash}
	head = append(binary.BigEndian.AppendUint16(head, uint16(len(area))), area...)
	h := map[byte]crypto.Hash{1: crypto.MD5, 2: crypto.SHA1, 8: crypto.SHA256, 9: crypto.SHA384, 10: crypto.SHA512, 11: crypto.SHA224}[s.hash].New()
	h.Write(data)
	h.Write(head)
	h.Write(binary.BigEndian.AppendUint32([]byte{s.version, 0xff}, uint32(len(head))))
	digest := h.Sum(nil)
	out := append(binary.BigEndian.AppendUint16(head, uint16(len(s.unhashed))), s.unhashed...)
	out = append(out, digest[:2]...)
	made := ed25519.Sign(k.private, digest)
	out = append(append(out, mpi(made[:32])...), mpi(made[32:])...)
	return append(out, s.tail...)
}

// pack adds a packet header of the new format.
func pack(tag byte, body []byte) []byte {
	switch n := len(body); {
	case n < 192:
		return append([]byte{0xc0 | tag, byte(n)}, body...)
	default:
		return append([]byte{0xc0 | tag, byte((n-192)>>8) + 192, byte(n - 192)}, body...)
	}
}

func (s forgedSig) packet(k forgedKey, data []byte) []byte { return pack(2, s.by(k, data)) }

const forgedName = "Release <release@example.org>"

func nameHashed(k forgedKey) []byte {
	out := binary.BigEndian.AppendUint32(append(k.hashed(), 0xb4), uint32(len(forgedName)))
	return append(out, forgedName...)
}

// certificate is a primary key with a name; more is what follows them.
func certificate(k forgedKey, self forgedSig, more ...[]byte) []byte {
	if self.sigType == 0 {
		self.sigType = 0x13
	}
	if self.created.IsZero() {
		self.created = k.created
	}
	out := append(pack(6, k.body()), pack(13, []byte(forgedName))...)
	return append(append(out, self.packet(k, nameHashed(k))...), bytes.Join(more, nil)...)
}

// mayCertifyAndSign are the usual flags of a primary key.
func mayCertifyAndSign() []byte { return sub(27, 3) }

// signingSubkey is a subkey with its binding; cross is the other direction's
// signature, or absent.
func signingSubkey(primary, k forgedKey, binding forgedSig, cross *forgedSig) []byte {
	data := append(primary.hashed(), k.hashed()...)
	if cross != nil {
		c := *cross
		if c.sigType == 0 {
			c.sigType = 0x19
		}
		if c.created.IsZero() {
			c.created = k.created
		}
		binding.unhashed = append(binding.unhashed, sub(32, c.by(k, data)...)...)
	}
	binding.sigType = 0x18
	if binding.created.IsZero() {
		binding.created = k.created
	}
	return append(pack(14, k.body()), binding.packet(primary, data)...)
}

// enarmor writes ASCII armor.
func enarmor(kind string, b []byte) []byte {
	text := base64.StdEncoding.EncodeToString(b)
	var out bytes.Buffer
	fmt.Fprintf(&out, "-----BEGIN PGP %s-----\n\n", kind)
	for len(text) > 64 {
		fmt.Fprintln(&out, text[:64])
		text = text[64:]
	}
	sum := crc24(b)
	fmt.Fprintf(&out, "%s\n=%s\n-----END PGP %s-----\n", text, base64.StdEncoding.EncodeToString([]byte{byte(sum >> 16), byte(sum >> 8), byte(sum)}), kind)
	return out.Bytes()
}
