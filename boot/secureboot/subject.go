package secureboot

import (
	"crypto/x509/pkix"
	stdasn1 "encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Subject reads whose certificate it is (RFC 5280, section 4.1), of one too that
// crypto/x509 refuses: the serial numbers of vendors' certificates can be negative or
// too long, and firmware does not mind. It is for people, and vouches for nothing.
func Subject(certificate []byte) (string, bool) {
	input := cryptobyte.String(certificate)
	var outer, body, subject cryptobyte.String
	ok := input.ReadASN1(&outer, asn1.SEQUENCE) && outer.ReadASN1(&body, asn1.SEQUENCE) &&
		body.SkipOptionalASN1(asn1.Tag(0).ContextSpecific().Constructed()) && // version
		body.SkipASN1(asn1.INTEGER) && // serial number
		body.SkipASN1(asn1.SEQUENCE) && // algorithm
		body.SkipASN1(asn1.SEQUENCE) && // issuer
		body.SkipASN1(asn1.SEQUENCE) && // validity
		body.ReadASN1Element(&subject, asn1.SEQUENCE)
	if !ok {
		return "", false
	}
	var names pkix.RDNSequence
	if rest, err := stdasn1.Unmarshal(subject, &names); err != nil || len(rest) > 0 {
		return "", false
	}
	return names.String(), true
}
