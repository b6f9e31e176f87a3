package scan

import (
	"bytes"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// enclosing returns the content of the SEQUENCE that starts right before a
// place, and where its header starts. It must lie in the data as a whole.
func enclosing(data []byte, at int) (content cryptobyte.String, start int, ok bool) {
	for _, header := range []int{4, 3, 2} {
		start := at - header
		if start < 0 || data[start] != 0x30 {
			continue
		}
		s := cryptobyte.String(data[start:])
		var inner cryptobyte.String
		if s.ReadASN1(&inner, asn1.SEQUENCE) && len(data)-start-len(s)-len(inner) == header {
			return inner, start, true
		}
	}
	return nil, 0, false
}

// derPKCS8 finds a PrivateKeyInfo or OneAsymmetricKey (RFC 5958, section 2).
func derPKCS8(data []byte, at int) (int, bool) {
	s, start, ok := enclosing(data, at)
	var version, algorithm, key cryptobyte.String
	if !ok || !s.ReadASN1(&version, asn1.INTEGER) || !s.ReadASN1(&algorithm, asn1.SEQUENCE) || !s.ReadASN1(&key, asn1.OCTET_STRING) {
		return 0, false
	}
	if !s.SkipOptionalASN1(asn1.Tag(0).ContextSpecific().Constructed()) || !s.SkipOptionalASN1(asn1.Tag(1).ContextSpecific()) {
		return 0, false
	}
	var name, bare cryptobyte.String
	if whole := key; whole.ReadASN1(&bare, asn1.OCTET_STRING) && whole.Empty() && !random(bare) {
		return 0, false // programs have what stands before an Ed25519 key, and something else behind it
	}
	return start, s.Empty() && len(key) >= 16 && algorithm.ReadASN1(&name, asn1.OBJECT_IDENTIFIER) && len(name) >= 3
}

// derPKCS1 finds an RSAPrivateKey (RFC 8017, appendix A.1.2) or the same of DSA
// as OpenSSL writes it: nothing but integers, of which the first is large.
func derPKCS1(data []byte, at int) (int, bool) {
	s, start, ok := enclosing(data, at)
	if !ok {
		return 0, false
	}
	var sizes []int
	for !s.Empty() {
		var n cryptobyte.String
		if !s.ReadASN1(&n, asn1.INTEGER) || len(n) == 0 || n[0] >= 0x80 {
			return 0, false
		}
		sizes = append(sizes, len(n))
	}
	return start, (len(sizes) == 9 || len(sizes) == 6) && sizes[1] >= 64
}

// derSEC1 finds an ECPrivateKey (RFC 5915, section 3) with its curve or its
// public key; without both it is within a PKCS#8.
func derSEC1(data []byte, at int) (int, bool) {
	s, start, ok := enclosing(data, at)
	var version, key cryptobyte.String
	if !ok || !s.ReadASN1(&version, asn1.INTEGER) || !s.ReadASN1(&key, asn1.OCTET_STRING) || len(key) < 14 || len(key) > 72 || s.Empty() {
		return 0, false
	}
	for _, tag := range []uint8{0, 1} {
		if !s.SkipOptionalASN1(asn1.Tag(tag).ContextSpecific().Constructed()) {
			return 0, false
		}
	}
	return start, s.Empty()
}

// encryptedPKCS8 finds an EncryptedPrivateKeyInfo (RFC 5958, section 3); the
// anchor is within the name of its algorithm.
func encryptedPKCS8(data []byte, at int) (int, bool) {
	if at < 2 || data[at-2] != byte(asn1.OBJECT_IDENTIFIER) {
		return 0, false
	}
	_, start, ok := enclosing(data, at-2)
	if !ok {
		return 0, false
	}
	s, start, ok := enclosing(data, start)
	var algorithm, key cryptobyte.String
	return start, ok && s.ReadASN1(&algorithm, asn1.SEQUENCE) && s.ReadASN1(&key, asn1.OCTET_STRING) && s.Empty() && len(key) >= 16
}

// derPKCS12 finds a PFX (RFC 7292, section 4) but for one that shows that it has
// certificates alone. What else is in it cannot be told without its password.
func derPKCS12(data []byte, at int) (int, bool) {
	rest := cryptobyte.String(data[at+3:])
	var safe, name cryptobyte.String
	if at < 2 || !rest.ReadASN1(&safe, asn1.SEQUENCE) {
		// Of indefinite length, as Java and Windows write it.
		return at, at >= 2 && data[at-2] == 0x30 && bytes.HasPrefix(data[at+3:], []byte("\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"))
	}
	_, start, ok := enclosing(data, at)
	content := safe
	return start, ok && safe.ReadASN1(&name, asn1.OBJECT_IDENTIFIER) && bytes.HasPrefix(name, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x07")) && !certificatesOnly(content)
}

// certificatesOnly reports whether a PFX's content is in the clear and holds
// certificates and revocations alone (RFC 7292, section 4.2), as cacerts of a JDK.
func certificatesOnly(content cryptobyte.String) bool {
	safe, ok := plainData(content)
	var parts cryptobyte.String
	if !ok || !safe.ReadASN1(&parts, asn1.SEQUENCE) || !safe.Empty() {
		return false
	}
	for !parts.Empty() {
		var part, bags, bag, kind cryptobyte.String
		if !parts.ReadASN1(&part, asn1.SEQUENCE) {
			return false
		}
		inner, ok := plainData(part)
		if !ok || !inner.ReadASN1(&bags, asn1.SEQUENCE) || !inner.Empty() {
			return false
		}
		for !bags.Empty() {
			if !bags.ReadASN1(&bag, asn1.SEQUENCE) || !bag.ReadASN1(&kind, asn1.OBJECT_IDENTIFIER) {
				return false
			}
			last, ok := bytes.CutPrefix(kind, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01"))
			if !ok || len(last) != 1 || last[0] != 3 && last[0] != 4 { // certBag, crlBag
				return false
			}
		}
	}
	return true
}

// plainData is what a ContentInfo of the type data holds (RFC 2315, section 8).
func plainData(info cryptobyte.String) (cryptobyte.String, bool) {
	var kind, content, data cryptobyte.String
	ok := info.ReadASN1(&kind, asn1.OBJECT_IDENTIFIER) && string(kind) == "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01" &&
		info.ReadASN1(&content, asn1.Tag(0).ContextSpecific().Constructed()) && info.Empty() &&
		content.ReadASN1(&data, asn1.OCTET_STRING) && content.Empty()
	return data, ok
}
