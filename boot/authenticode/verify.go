package authenticode

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	stdasn1 "encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

var (
	// ErrNotSigned means that an image carries no signature.
	ErrNotSigned = errors.New("image is not signed")
	// ErrUntrusted means that an image's signatures are sound, but none is
	// by a trusted certificate.
	ErrUntrusted = errors.New("no signature is by a trusted certificate")
)

// Verify checks all signatures of an image and returns the certificate of the
// first whose signer is one of roots, or was issued by one of them directly.
// Every signature must fit the image, no matter who made it. The validity period of
// certificates is not looked at.
func Verify(image []byte, roots []*x509.Certificate) (*x509.Certificate, error) {
	file, err := parse(image)
	if err != nil {
		return nil, fmt.Errorf("verify image: %w", err)
	}
	signatures, err := entries(image[len(unsigned(image, file)):])
	if err != nil {
		return nil, fmt.Errorf("verify image: %w", err)
	}
	if len(signatures) == 0 {
		return nil, fmt.Errorf("verify image: %w", ErrNotSigned)
	}
	sum := digest(image, file)
	var trusted *x509.Certificate
	for i, der := range signatures {
		signer, err := verifySignature(der, sum)
		if err != nil {
			return nil, fmt.Errorf("verify image: signature %d of %d: %w", i+1, len(signatures), err)
		}
		if trusted == nil && isTrusted(signer, roots) {
			trusted = signer
		}
	}
	if trusted == nil {
		return nil, fmt.Errorf("verify image: %w", ErrUntrusted)
	}
	return trusted, nil
}

// VerifyOwn checks that one of an image's signatures is by this certificate's
// key. The signatures of others are not looked at: what they are worth is for
// the firmware to say, and theirs need not be of the form that Verify wants.
func VerifyOwn(image []byte, own *x509.Certificate) error {
	file, err := parse(image)
	if err != nil {
		return fmt.Errorf("verify image: %w", err)
	}
	signatures, err := entries(image[len(unsigned(image, file)):])
	if err != nil {
		return fmt.Errorf("verify image: %w", err)
	}
	if len(signatures) == 0 {
		return fmt.Errorf("verify image: %w", ErrNotSigned)
	}
	sum := digest(image, file)
	err = ErrUntrusted
	for _, der := range signatures {
		signer, bad := verifySignature(der, sum)
		switch {
		case bad == nil && signer.Equal(own):
			return nil
		case bad != nil && bytes.Contains(der, own.Raw):
			err = bad // it means to be ours
		}
	}
	return fmt.Errorf("verify image: %w", err)
}

func isTrusted(signer *x509.Certificate, roots []*x509.Certificate) bool {
	for _, root := range roots {
		if signer.Equal(root) || signer.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}

// entries splits a certificate table into the PKCS #7 signatures in it. The
// padding behind each must be zero, or it could hold anything.
func entries(table []byte) ([][]byte, error) {
	le := binary.LittleEndian
	var signatures [][]byte
	for len(table) > 0 {
		if len(table) < winHeaderSize {
			return nil, fmt.Errorf("%d bytes behind the last signature", len(table))
		}
		size := uint64(le.Uint32(table))
		if size < winHeaderSize || size > uint64(len(table)) || size > maxSignatureSize {
			return nil, fmt.Errorf("signature of %d bytes, %d are left (at most %d)", size, len(table), maxSignatureSize)
		}
		if revision, kind := le.Uint16(table[4:]), le.Uint16(table[6:]); revision != winRevision || kind != winPKCSSigned {
			return nil, fmt.Errorf("signature of revision %#x and type %d, want %#x and %d (PKCS #7)", revision, kind, winRevision, winPKCSSigned)
		}
		end := min(size+uint64(padding(int(size))), uint64(len(table)))
		for _, b := range table[size:end] {
			if b != 0 {
				return nil, errors.New("the padding behind a signature is not zero")
			}
		}
		signatures = append(signatures, table[winHeaderSize:size])
		table = table[end:]
	}
	return signatures, nil
}

// signature is a parsed SignedData with its only signer.
type signature struct {
	content    []byte // octets of SpcIndirectDataContent, without tag and length
	imageSum   []byte // PE hash that content states
	certs      []*x509.Certificate
	issuer     []byte
	serial     *big.Int
	attributes []byte // the signed attributes as the DER SET that was signed
	messageSum []byte // hash of content that the attributes state
	signature  []byte
}

// verifySignature follows the whole chain of what states what: the image's
// hash, the content that names it, the signed hash of that content, and the
// signature over it. Leaving out one link lets a signature be moved to another
// image.
func verifySignature(der []byte, sum [sha256.Size]byte) (*x509.Certificate, error) {
	s, err := parseSignature(der)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(s.imageSum, sum[:]) {
		return nil, fmt.Errorf("it is for an image of hash %x, this one's is %x", s.imageSum, sum)
	}
	if content := sha256.Sum256(s.content); !bytes.Equal(s.messageSum, content[:]) {
		return nil, errors.New("what was signed is not its content")
	}
	signer, err := s.signer()
	if err != nil {
		return nil, err
	}
	key, ok := signer.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minRSABits {
		return nil, fmt.Errorf("signer's key is not RSA of %d bits or more", minRSABits)
	}
	hash := sha256.Sum256(s.attributes)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], s.signature); err != nil {
		return nil, fmt.Errorf("signer %q did not make it: %w", signer.Subject, err)
	}
	return signer, nil
}

// signer finds the one certificate in the signature that the signer names.
func (s *signature) signer() (*x509.Certificate, error) {
	var found *x509.Certificate
	for _, cert := range s.certs {
		if !bytes.Equal(cert.RawIssuer, s.issuer) || cert.SerialNumber.Cmp(s.serial) != 0 {
			continue
		}
		if found != nil {
			return nil, errors.New("two certificates pass for the signer's")
		}
		found = cert
	}
	if found == nil {
		return nil, errors.New("the signer's certificate is not in it")
	}
	return found, nil
}

func malformed(what string) error { return fmt.Errorf("malformed PKCS #7: %s", what) }

// parseSignature reads a ContentInfo with SignedData (RFC 2315, section 9) as
// Authenticode uses it. der may be followed by zeros up to a multiple of 8.
func parseSignature(der []byte) (*signature, error) {
	explicit := asn1.Tag(0).ContextSpecific().Constructed()
	input := cryptobyte.String(der)
	var info, data, signed, algorithms, inner, certs, signers cryptobyte.String
	if !input.ReadASN1(&info, asn1.SEQUENCE) || !readOID(&info, oidSignedData()) ||
		!info.ReadASN1(&data, explicit) || !info.Empty() || !data.ReadASN1(&signed, asn1.SEQUENCE) || !data.Empty() {
		return nil, malformed("no SignedData")
	}
	if len(input) >= certificateAlignment || len(bytes.Trim(input, "\x00")) != 0 {
		return nil, malformed("bytes behind its end")
	}
	if !readVersion(&signed) || !signed.ReadASN1(&algorithms, asn1.SET) || !readAlgorithm(&algorithms, oidSHA256()) || !algorithms.Empty() {
		return nil, malformed("not SHA-256 alone")
	}
	if !signed.ReadASN1(&inner, asn1.SEQUENCE) {
		return nil, malformed("no content")
	}
	s := &signature{}
	if err := s.parseContent(inner); err != nil {
		return nil, err
	}
	if !signed.ReadASN1(&certs, explicit) {
		return nil, malformed("no certificates")
	}
	var err error
	if s.certs, err = parseCertificates(certs); err != nil {
		return nil, err
	}
	if !signed.SkipOptionalASN1(asn1.Tag(1).ContextSpecific().Constructed()) || // revocation lists
		!signed.ReadASN1(&signers, asn1.SET) || !signed.Empty() {
		return nil, malformed("no signers")
	}
	if err := s.parseSigner(&signers); err != nil {
		return nil, err
	}
	if !signers.Empty() {
		return nil, malformed("more than one signer")
	}
	return s, nil
}

// parseContent reads the ContentInfo that holds SpcIndirectDataContent.
func (s *signature) parseContent(info cryptobyte.String) error {
	var wrapped, content, kind, digestInfo, sum cryptobyte.String
	if !readOID(&info, oidIndirectData()) || !info.ReadASN1(&wrapped, asn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() ||
		!wrapped.ReadASN1(&content, asn1.SEQUENCE) || !wrapped.Empty() {
		return malformed("content is not Authenticode's")
	}
	s.content = content
	if !content.ReadASN1(&kind, asn1.SEQUENCE) || !readOID(&kind, oidPEImageData()) ||
		!content.ReadASN1(&digestInfo, asn1.SEQUENCE) || !content.Empty() {
		return malformed("content is not about a PE image")
	}
	if !readAlgorithm(&digestInfo, oidSHA256()) || !digestInfo.ReadASN1(&sum, asn1.OCTET_STRING) || !digestInfo.Empty() || len(sum) != sha256.Size {
		return malformed("image hash is not SHA-256")
	}
	s.imageSum = sum
	return nil
}

func parseCertificates(list cryptobyte.String) ([]*x509.Certificate, error) {
	const most = 16
	var certs []*x509.Certificate
	for !list.Empty() {
		var der cryptobyte.String
		if !list.ReadASN1Element(&der, asn1.SEQUENCE) || len(certs) == most {
			return nil, malformed(fmt.Sprintf("certificates that are not certificates, or more than %d", most))
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// parseSigner reads a SignerInfo. Its unsigned attributes, such as time stamps
// and further signatures, prove nothing here and are skipped.
func (s *signature) parseSigner(signers *cryptobyte.String) error {
	var info, name, issuer, attributes, sig cryptobyte.String
	s.serial = new(big.Int)
	if !signers.ReadASN1(&info, asn1.SEQUENCE) || !readVersion(&info) || !info.ReadASN1(&name, asn1.SEQUENCE) ||
		!name.ReadASN1Element(&issuer, asn1.SEQUENCE) || !name.ReadASN1Integer(s.serial) || !name.Empty() {
		return malformed("no signer")
	}
	s.issuer = issuer
	if !readAlgorithm(&info, oidSHA256()) {
		return malformed("signer did not use SHA-256")
	}
	if !info.ReadASN1(&attributes, asn1.Tag(0).ContextSpecific().Constructed()) {
		return malformed("no signed attributes")
	}
	if err := s.parseAttributes(attributes); err != nil {
		return err
	}
	rest := info
	if !readAlgorithm(&info, oidRSA()) {
		info = rest
		if !readAlgorithm(&info, oidSHA256WithRSA()) {
			return malformed("signer did not use RSA")
		}
	}
	if !info.ReadASN1(&sig, asn1.OCTET_STRING) || !info.SkipOptionalASN1(asn1.Tag(1).ContextSpecific().Constructed()) || !info.Empty() {
		return malformed("no signature value")
	}
	s.signature = sig
	return nil
}

// parseAttributes wants a content type and a message digest, each once with
// one value. What is signed is the attributes as a SET, not with the tag that
// they have in the message (RFC 2315, section 9.3).
func (s *signature) parseAttributes(attributes cryptobyte.String) error {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
	var err error
	if s.attributes, err = b.Bytes(); err != nil {
		return fmt.Errorf("signed attributes: %w", err)
	}
	typed := false
	for !attributes.Empty() {
		var attribute, values, sum cryptobyte.String
		var oid stdasn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, asn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, asn1.SET) || !attribute.Empty() {
			return malformed("signed attributes")
		}
		switch {
		case oid.Equal(oidContentType()):
			if typed || !readOID(&values, oidIndirectData()) || !values.Empty() {
				return malformed("content type attribute")
			}
			typed = true
		case oid.Equal(oidMessageDigest()):
			if s.messageSum != nil || !values.ReadASN1(&sum, asn1.OCTET_STRING) || !values.Empty() || len(sum) != sha256.Size {
				return malformed("message digest attribute")
			}
			s.messageSum = sum
		}
	}
	if !typed || s.messageSum == nil {
		return malformed("no content type or no message digest among the signed attributes")
	}
	return nil
}

func readOID(s *cryptobyte.String, want stdasn1.ObjectIdentifier) bool {
	var oid stdasn1.ObjectIdentifier
	return s.ReadASN1ObjectIdentifier(&oid) && oid.Equal(want)
}

func readVersion(s *cryptobyte.String) bool {
	var version int64
	return s.ReadASN1Integer(&version) && version == 1
}

// readAlgorithm reads an AlgorithmIdentifier without parameters, or NULL ones.
func readAlgorithm(s *cryptobyte.String, want stdasn1.ObjectIdentifier) bool {
	var id, null cryptobyte.String
	if !s.ReadASN1(&id, asn1.SEQUENCE) || !readOID(&id, want) {
		return false
	}
	if id.Empty() {
		return true
	}
	return id.ReadASN1(&null, asn1.NULL) && null.Empty() && id.Empty()
}
