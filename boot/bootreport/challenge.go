package bootreport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/strictjson"
)

// ChallengeFormat is the number of the format of a challenge; another is refused.
const ChallengeFormat = 1

// Bounds of a challenge, in bytes.
const (
	MaxChallenge      = 8 << 10
	answerSize        = 32  // what SHA-256 as the key's hash allows (TPM 2.0 Part 3, 12.5)
	maxEndorsementKey = 512 // an RSA key of 2048 bits has 314
	maxCredential     = 128 // 34 for the HMAC, 34 encrypted
	maxEncrypted      = 256 // RSA of 2048 bits
)

// A Challenge asks a machine for what only a TPM can answer that holds two keys: the
// endorsement key, which its maker has certified, and the attestation key of boot reports
// (TPM 2.0 Part 1, 24, "Credential Protection"). It holds no secret that anybody else
// can read.
type Challenge struct {
	Format      int          `json:"format"`
	Key         policy.Name  `json:"key"`         // the attestation key's Name
	Endorsement contract.Hex `json:"endorsement"` // the endorsement key, TPMT_PUBLIC
	Credential  contract.Hex `json:"credential"`  // the answer, encrypted: TPMS_ID_OBJECT
	Secret      contract.Hex `json:"secret"`      // the seed, encrypted to the endorsement key
}

// NewChallenge makes a challenge for the attestation key of a report, which a TPM with
// the certified endorsement key has to answer. The answer is what that TPM returns.
func NewChallenge(random io.Reader, certificate *x509.Certificate, key []byte) (c *Challenge, answer []byte, err error) {
	defer fence(&err)
	name, err := KeyName(key)
	if err != nil {
		return nil, nil, err
	}
	endorsement, err := endorsementKey(certificate)
	if err != nil {
		return nil, nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(&endorsement)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	answer = make([]byte, answerSize)
	if _, err := io.ReadFull(random, answer); err != nil {
		return nil, nil, err
	}
	credential, secret, err := tpm2.CreateCredential(random, to, name[:], answer)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypt to the endorsement key: %w", err)
	}
	c = &Challenge{ChallengeFormat, name, tpm2.Marshal(endorsement), credential, secret}
	return c, answer, c.validate()
}

// endorsementKey is the public area that a TPM makes of the templates L-1 and L-2 with
// the certified key (TCG EK Credential Profile 2.6, B.3.3 and B.3.4).
func endorsementKey(certificate *x509.Certificate) (tpm2.TPMTPublic, error) {
	switch key := certificate.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() == 2048 && key.E == 65537 {
			public := tpm2.RSAEKTemplate
			public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})
			return public, nil
		}
	case *ecdsa.PublicKey:
		if point, err := key.Bytes(); err == nil && key.Curve == elliptic.P256() { // 4, and the coordinates (SEC 1, 2.3.3)
			x, y := tpm2.TPM2BECCParameter{Buffer: point[1:33]}, tpm2.TPM2BECCParameter{Buffer: point[33:]}
			public := tpm2.ECCEKTemplate
			public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: x, Y: y})
			return public, nil
		}
	}
	return tpm2.TPMTPublic{}, errors.New("EK certificate: want one of an RSA key of 2048 bits or of P-256; TPMs have several, ask for another")
}

func (c *Challenge) validate() error {
	if c.Format != ChallengeFormat {
		return fmt.Errorf("challenge: format %d, want %d", c.Format, ChallengeFormat)
	}
	for _, f := range []struct {
		name string
		b    []byte
		most int
	}{{"endorsement", c.Endorsement, maxEndorsementKey}, {"credential", c.Credential, maxCredential}, {"secret", c.Secret, maxEncrypted}} {
		if len(f.b) == 0 || len(f.b) > f.most {
			return fmt.Errorf("challenge: %s of %d bytes, want 1 to %d", f.name, len(f.b), f.most)
		}
	}
	return nil
}

// Encode returns the challenge as a file has it.
func (c *Challenge) Encode() ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(c, "", "  ")
	return append(out, '\n'), err
}

// ParseChallenge reads what Encode wrote. Only a TPM can tell whether it is for this machine.
func ParseChallenge(text []byte) (*Challenge, error) {
	if len(text) > MaxChallenge {
		return nil, fmt.Errorf("challenge: %d bytes, at most %d are read", len(text), MaxChallenge)
	}
	c := new(Challenge)
	if err := strictjson.Decode(text, c); err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	return c, c.validate()
}

// EndorsementTemplate returns the template of which a TPM makes the endorsement key that
// a challenge is for. What the challenge says of the key is compared, and never used.
func (c *Challenge) EndorsementTemplate() (template tpm2.TPMTPublic, err error) {
	defer fence(&err)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](c.Endorsement)
	if err != nil {
		return template, fmt.Errorf("challenge: endorsement key: %w", err)
	}
	switch public.Type {
	case tpm2.TPMAlgRSA:
		return tpm2.RSAEKTemplate, nil
	case tpm2.TPMAlgECC:
		return tpm2.ECCEKTemplate, nil
	}
	return template, errors.New("challenge: the endorsement key is neither RSA nor of an elliptic curve")
}

var (
	ekUsage = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	altName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Certificates reads certificates in PEM, or one in DER, which may be padded as a TPM's
// NV index pads it.
func Certificates(data []byte) (all []*x509.Certificate, err error) {
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(data, &one)
		if err == nil && len(bytes.Trim(rest, "\x00\xff")) > 0 {
			err = fmt.Errorf("%d bytes follow the certificate", len(rest))
		}
		if err != nil {
			return nil, err
		}
		certificate, err := x509.ParseCertificate(one.FullBytes)
		return []*x509.Certificate{certificate}, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a block of type %.40q, want CERTIFICATE", block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, certificate)
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate is in it")
	}
	return all, nil
}

// CheckEndorsement reports whether a certificate is one of an endorsement key, signed by
// one of the authorities, through others of them where they are not roots. Revocation
// lists are not asked.
func CheckEndorsement(certificate *x509.Certificate, authorities []*x509.Certificate, now time.Time) error {
	if !slices.ContainsFunc(certificate.UnknownExtKeyUsage, ekUsage.Equal) {
		return errors.New("EK certificate: it is not one of an endorsement key (the extended key usage 2.23.133.8.1 is missing)")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range authorities {
		if bytes.Equal(a.RawIssuer, a.RawSubject) {
			roots.AddCert(a)
		} else {
			between.AddCert(a)
		}
	}
	// The TPM's maker and model stand in a directoryName of the alternative name, which
	// is critical where the subject is empty, and which crypto/x509 does not read.
	read := *certificate
	read.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(certificate.UnhandledCriticalExtensions), altName.Equal)
	_, err := read.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("EK certificate: %w", err)
	}
	return nil
}
