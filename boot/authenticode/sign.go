package authenticode

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	stdasn1 "encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// minRSABits is the smallest key that signs or verifies.
const minRSABits = 2048

// WIN_CERTIFICATE (UEFI 2.10, section 32.2.4).
const (
	winHeaderSize    = 8
	winRevision      = 0x0200
	winPKCSSigned    = 0x0002
	maxSignatureSize = 1 << 20
)

// Object identifiers, as functions' results since slices cannot be constants.
func oidSignedData() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
}
func oidSHA256() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
}
func oidRSA() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
}
func oidSHA256WithRSA() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
}
func oidContentType() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
}
func oidMessageDigest() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
}
func oidSigningTime() stdasn1.ObjectIdentifier {
	return stdasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
}
func oidIndirectData() stdasn1.ObjectIdentifier { // SPC_INDIRECT_DATA_OBJID
	return stdasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
}
func oidPEImageData() stdasn1.ObjectIdentifier { // SPC_PE_IMAGE_DATAOBJ
	return stdasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
}

// Sign returns a copy of image with one more signature, by the RSA key of
// cert, which need not be a CA. at is the signing time it states. With an
// ordinary RSA key the same input gives the same bytes.
func Sign(image []byte, key crypto.Signer, cert *x509.Certificate, at time.Time) ([]byte, error) {
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok || public.N.BitLen() < minRSABits {
		return nil, fmt.Errorf("sign image: key is not RSA of %d bits or more: firmware takes no other reliably", minRSABits)
	}
	if !public.Equal(cert.PublicKey) {
		return nil, errors.New("sign image: key and certificate do not belong together")
	}
	if at = at.UTC(); at.Year() < 1950 || at.Year() > 2049 {
		return nil, fmt.Errorf("sign image: signing time %v is not between 1950 and 2049", at)
	}
	file, err := parse(image)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	if _, err := entries(image[len(unsigned(image, file)):]); err != nil {
		return nil, fmt.Errorf("sign image: signatures it has: %w", err)
	}
	content, err := indirectData(digest(image, file))
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	attributes, err := signedAttributes(content, at)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	hash := sha256.Sum256(attributes)
	signature, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	signed, err := signedData(content, []*x509.Certificate{cert}, signerInfo(cert, attributes, signature))
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	table := append([]byte{}, image[len(unsigned(image, file)):]...)
	table = appendEntry(table, signed)
	base := unsigned(image, file)
	if uint64(len(base))+uint64(len(table))+certificateAlignment > math.MaxUint32 {
		return nil, fmt.Errorf("sign image: %d bytes with its signatures, a PE image ends at 4 GiB", len(base)+len(table))
	}
	return withTable(base, file, table), nil
}

// appendEntry adds a WIN_CERTIFICATE. Its stated length leaves the padding
// out, as sbsign has it.
func appendEntry(table, signed []byte) []byte {
	le := binary.LittleEndian
	table = le.AppendUint32(table, uint32(winHeaderSize+len(signed)))
	table = le.AppendUint16(table, winRevision)
	table = le.AppendUint16(table, winPKCSSigned)
	table = append(table, signed...)
	return append(table, make([]byte, padding(len(table)))...)
}

// indirectData returns the content octets of SpcIndirectDataContent: what the
// signed message digest is computed over.
func indirectData(sum [sha256.Size]byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // SpcAttributeTypeAndOptionalValue
		b.AddASN1ObjectIdentifier(oidPEImageData())
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // SpcPeImageData
			b.AddASN1BitString(nil)
			b.AddASN1(asn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {}) // empty file name
				})
			})
		})
	})
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // DigestInfo
		addSHA256(b)
		b.AddASN1OctetString(sum[:])
	})
	return b.Bytes()
}

func addSHA256(b *cryptobyte.Builder) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSHA256())
		b.AddASN1NULL()
	})
}

// signedAttributes returns the SET that is signed. Its members are in DER's
// order, by encoding.
func signedAttributes(content []byte, at time.Time) ([]byte, error) {
	sum := sha256.Sum256(content)
	var b cryptobyte.Builder
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
		addAttribute(b, oidContentType(), func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidIndirectData()) })
		addAttribute(b, oidSigningTime(), func(b *cryptobyte.Builder) { b.AddASN1UTCTime(at) })
		addAttribute(b, oidMessageDigest(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(sum[:]) })
	})
	return b.Bytes()
}

func addAttribute(b *cryptobyte.Builder, oid stdasn1.ObjectIdentifier, value func(*cryptobyte.Builder)) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(asn1.SET, value)
	})
}

// signerInfo returns a function that adds a PKCS #7 SignerInfo. Without
// attributes it has none.
func signerInfo(cert *x509.Certificate, attributes, signature []byte) func(*cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(1)
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(cert.RawIssuer)
				b.AddASN1BigInt(cert.SerialNumber)
			})
			addSHA256(b)
			outer, inner := cryptobyte.String(attributes), cryptobyte.String(nil)
			if outer.ReadASN1(&inner, asn1.SET) {
				b.AddASN1(asn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(inner) })
			}
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidRSA())
				b.AddASN1NULL()
			})
			b.AddASN1OctetString(signature)
		})
	}
}

// signedData returns a PKCS #7 ContentInfo with SignedData over content.
func signedData(content []byte, certs []*x509.Certificate, signers ...func(*cryptobyte.Builder)) ([]byte, error) {
	explicit := asn1.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData())
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(asn1.SET, addSHA256)
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidIndirectData())
					b.AddASN1(explicit, func(b *cryptobyte.Builder) {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(content) })
					})
				})
				b.AddASN1(explicit, func(b *cryptobyte.Builder) {
					for _, cert := range certs {
						b.AddBytes(cert.Raw)
					}
				})
				b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
					for _, add := range signers {
						add(b)
					}
				})
			})
		})
	})
	return b.Bytes()
}
