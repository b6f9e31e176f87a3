package modules

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/smallstep/pkcs7"
)

const (
	// marker ends a signed module.
	marker = "~Module signature appended~\n"
	// trailer is the size of struct module_signature before it.
	trailer      = 12
	idPKCS7      = 2
	maxSignature = 64 << 10 // bytes
)

// split takes the signature off a module; nil when it has none (Linux,
// include/linux/module_signature.h; kernel/module_signature.c).
func split(content []byte) (plain, signature []byte, err error) {
	rest, ok := bytes.CutSuffix(content, []byte(marker))
	if !ok {
		return content, nil, nil
	}
	if len(rest) < trailer {
		return nil, nil, errors.New("ends within its signature")
	}
	t := rest[len(rest)-trailer:]
	rest = rest[:len(rest)-trailer]
	if t[2] != idPKCS7 || t[0]|t[1]|t[3]|t[4]|t[5]|t[6]|t[7] != 0 {
		return nil, nil, fmt.Errorf("has a signature of an unknown kind (%x)", t[:8])
	}
	size := binary.BigEndian.Uint32(t[8:])
	if size == 0 || size > maxSignature || int(size) >= len(rest) {
		return nil, nil, fmt.Errorf("has a signature of %d bytes", size)
	}
	at := len(rest) - int(size)
	return rest[:at], rest[at:], nil
}

// A message is the PKCS #7 message of a detached signature, all of it (RFC
// 5652, sections 3 and 5.1).
type message struct {
	Type   asn1.ObjectIdentifier
	Signed struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content struct {
			Type    asn1.ObjectIdentifier
			Content asn1.RawValue `asn1:"optional,tag:0"`
		}
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		Signers      []signer      `asn1:"set"`
	} `asn1:"explicit,tag:0"`
}

type signer struct {
	Version    int
	Issuer     issuer
	Digest     pkix.AlgorithmIdentifier
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
	Algorithm  pkix.AlgorithmIdentifier
	Signature  []byte
}

type issuer struct {
	Name   asn1.RawValue
	Serial *big.Int
}

// made reports whether a certificate is the one that is meant.
func (i issuer) made(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, i.Name.FullBytes) && c.SerialNumber.Cmp(i.Serial) == 0
}

// parse reads a signature, and the certificates in it. It refuses what is damaged, also where its key signs
// nothing, and what the kernel does not take there (Linux,
// crypto/asymmetric_keys/pkcs7_parser.c).
func parse(signature []byte) (*signer, []*x509.Certificate, error) {
	var m message
	if _, err := asn1.Unmarshal(signature, &m); err != nil {
		return nil, nil, fmt.Errorf("read its signature: %w", err)
	}
	again, err := asn1.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("read its signature: %w", err)
	}
	certificates := m.Signed.Certificates
	if !bytes.Equal(again, signature) || len(certificates.FullBytes) > 0 && !certificates.IsCompound {
		return nil, nil, errors.New("its signature is damaged, or has more in it than one for modules, or is not DER")
	}
	with, err := x509.ParseCertificates(certificates.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read the certificates in its signature: %w", err)
	}
	d := m.Signed
	if d.Version != 1 || !m.Type.Equal(pkcs7.OIDSignedData) || !d.Content.Type.Equal(pkcs7.OIDData) {
		return nil, nil, fmt.Errorf("its signature has version %d and is a %v of a %v", d.Version, m.Type, d.Content.Type)
	}
	if len(d.Signers) != 1 {
		return nil, nil, fmt.Errorf("its signature has %d signers, want one", len(d.Signers))
	}
	s := &d.Signers[0]
	if len(d.Content.Content.FullBytes) > 0 || len(s.Attributes.FullBytes) > 0 {
		return nil, nil, errors.New("its signature is not one for modules: it has a content or attributes of its own, which the kernel refuses")
	}
	if s.Version != 1 || s.algorithm() == x509.UnknownSignatureAlgorithm || !absent(s.Digest.Parameters) || !absent(s.Algorithm.Parameters) {
		return nil, nil, fmt.Errorf("its signature has a signer of version %d with the algorithms %v and %v, which the kernel does not take", s.Version, s.Digest.Algorithm, s.Algorithm.Algorithm)
	}
	if !slices.ContainsFunc(d.Digests, func(a pkix.AlgorithmIdentifier) bool {
		return a.Algorithm.Equal(s.Digest.Algorithm) && absent(a.Parameters)
	}) {
		return nil, nil, fmt.Errorf("its signature does not name the digest of its signer, %v", s.Digest.Algorithm)
	}
	return s, with, nil
}

// algorithms are digests that the kernel takes, each with ECDSA's algorithm
// that has it; RSA's has none.
var algorithms = []struct {
	digest, ecdsa  asn1.ObjectIdentifier
	byRSA, byECDSA x509.SignatureAlgorithm
}{
	{pkcs7.OIDDigestAlgorithmSHA1, pkcs7.OIDDigestAlgorithmECDSASHA1, x509.SHA1WithRSA, x509.ECDSAWithSHA1},
	{pkcs7.OIDDigestAlgorithmSHA256, pkcs7.OIDDigestAlgorithmECDSASHA256, x509.SHA256WithRSA, x509.ECDSAWithSHA256},
	{pkcs7.OIDDigestAlgorithmSHA384, pkcs7.OIDDigestAlgorithmECDSASHA384, x509.SHA384WithRSA, x509.ECDSAWithSHA384},
	{pkcs7.OIDDigestAlgorithmSHA512, pkcs7.OIDDigestAlgorithmECDSASHA512, x509.SHA512WithRSA, x509.ECDSAWithSHA512},
}

// algorithm is how the signer signed, unknown where the kernel does not know
// it.
func (s *signer) algorithm() x509.SignatureAlgorithm {
	for _, a := range algorithms {
		switch {
		case !s.Digest.Algorithm.Equal(a.digest):
		case s.Algorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSA):
			return a.byRSA
		case s.Algorithm.Algorithm.Equal(a.ecdsa):
			return a.byECDSA
		}
	}
	return x509.UnknownSignatureAlgorithm
}

// absent reports whether an algorithm has no parameters, or NULL (RFC 5754,
// section 2).
func absent(parameters asn1.RawValue) bool {
	return len(parameters.FullBytes) == 0 || bytes.Equal(parameters.FullBytes, asn1.NullBytes)
}

// verify returns the certificate whose key made the signature. Nothing that
// came with the module is believed: neither certificates in its signature nor
// any content.
func verify(plain, signature []byte, trust []*x509.Certificate) (*x509.Certificate, error) {
	s, with, err := parse(signature)
	if err != nil {
		return nil, err
	}
	wrong := fmt.Errorf("is signed with the key of a certificate (serial number %x) that neither the kernel nor ModuleKey vouches for", s.Issuer.Serial)
	for _, c := range trust {
		if !s.Issuer.made(c) {
			continue
		}
		// The kernel takes the key from a certificate in the signature, verifies those
		// that are its issuers, and reads all of them.
		if slices.ContainsFunc(with, func(w *x509.Certificate) bool { return !w.Equal(c) }) {
			return nil, errors.New("its signature has a certificate in it that is not its signer's")
		}
		err := c.CheckSignature(s.algorithm(), plain, s.Signature)
		if err == nil {
			return c, nil
		}
		wrong = fmt.Errorf("its signature is wrong: %w", err)
	}
	return nil, wrong
}

// Signed reports whether a module ends with a signature, good or not.
func Signed(content []byte) bool { return bytes.HasSuffix(content, []byte(marker)) }

// Sign returns the module with a signature. The same key, module and
// certificate give the same bytes.
func Sign(content []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if Signed(content) {
		return nil, errors.New("sign kernel module: it is signed already")
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("sign kernel module: the key is not that of the certificate")
	}
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	switch cert.PublicKey.(type) {
	case *rsa.PublicKey:
		sd.SetEncryptionAlgorithm(pkcs7.OIDEncryptionAlgorithmRSA)
	case *ecdsa.PublicKey:
		sd.SetEncryptionAlgorithm(pkcs7.OIDDigestAlgorithmECDSASHA256)
	default:
		return nil, fmt.Errorf("sign kernel module: a key of the kind %T is not one that the kernel knows", cert.PublicKey)
	}
	if err := sd.SignWithoutAttr(cert, repeatable{key}, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	sd.Detach()
	signature, err := sd.Finish()
	if err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	if signature, err = bare(signature); err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	out := append(append(make([]byte, 0, len(content)+len(signature)+trailer+len(marker)), content...), signature...)
	out = append(out, 0, 0, idPKCS7, 0, 0, 0, 0, 0)
	out = append(binary.BigEndian.AppendUint32(out, uint32(len(signature))), marker...)
	plain, made, err := split(out)
	if err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	if _, err := verify(plain, made, []*x509.Certificate{cert}); err != nil {
		return nil, fmt.Errorf("sign kernel module: %w", err)
	}
	return out, nil
}

// bare makes a signature what the kernel's own tool makes: without the
// certificate, which the kernel has in a keyring, and with NULL as the
// parameters of RSA (RFC 3370, section 3.2).
func bare(signature []byte) ([]byte, error) {
	var m message
	if _, err := asn1.Unmarshal(signature, &m); err != nil {
		return nil, err
	}
	m.Signed.Certificates = asn1.RawValue{}
	for i := range m.Signed.Signers {
		if a := &m.Signed.Signers[i].Algorithm; a.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSA) {
			a.Parameters = asn1.NullRawValue
		}
	}
	return asn1.Marshal(m)
}

// repeatable makes signatures without chance (for ECDSA as RFC 6979 has it),
// so that a build can be repeated.
type repeatable struct{ crypto.Signer }

func (r repeatable) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.Signer.Sign(nil, digest, opts)
}
