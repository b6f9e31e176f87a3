package modules

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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

// verify returns the certificate whose key made the signature.
func verify(plain, signature []byte, trust []*x509.Certificate) (*x509.Certificate, error) {
	p, err := pkcs7.Parse(signature)
	if err != nil {
		return nil, fmt.Errorf("read its signature: %w", err)
	}
	if len(p.Signers) != 1 {
		return nil, fmt.Errorf("its signature has %d signers that are named by issuer and serial number, want one", len(p.Signers))
	}
	s := p.Signers[0]
	if len(p.Content) > 0 || len(s.AuthenticatedAttributes) > 0 {
		return nil, errors.New("its signature is not one for modules: it has a content or attributes of its own, which the kernel refuses")
	}
	by := s.IssuerAndSerialNumber
	wrong := fmt.Errorf("is signed with the key of a certificate (serial number %x) that neither the kernel nor ModuleKey vouches for", by.SerialNumber)
	for _, c := range trust {
		if !bytes.Equal(c.RawIssuer, by.IssuerName.FullBytes) || c.SerialNumber.Cmp(by.SerialNumber) != 0 {
			continue
		}
		// Nothing that came with the module is believed: neither the
		// certificates in its signature nor any content.
		p.Content, p.Certificates = plain, []*x509.Certificate{c}
		err := p.Verify()
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

// repeatable makes signatures without chance (for ECDSA as RFC 6979 has it),
// so that a build can be repeated.
type repeatable struct{ crypto.Signer }

func (r repeatable) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.Signer.Sign(nil, digest, opts)
}
