package inspect

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/contract"
)

// Key describes an OpenPGP key, a certificate or a PKCS#8 file. It says how a
// secret is kept, and nothing of the secret.
type Key struct {
	Kind        string       `json:"kind"`                  // OpenPGP, certificate, PKCS#8, PKCS#1 or SEC 1
	Secret      string       `json:"secret,omitempty"`      // none, encrypted or IN THE CLEAR
	Fingerprint contract.Hex `json:"fingerprint,omitempty"` // SHA-256 for a certificate
	Names       []string     `json:"names,omitempty"`
	Algorithm   string       `json:"algorithm,omitempty"`
	Created     *time.Time   `json:"created,omitempty"`
	Expires     *time.Time   `json:"expires,omitempty"`
	Uses        []string     `json:"uses,omitempty"`
	Subkeys     []Key        `json:"subkeys,omitempty"`
}

const maxKey = 1 << 20 // bytes

// secretWords say how the secret part is kept.
const (
	secretLocked = "encrypted"
	secretOpen   = "IN THE CLEAR"
)

// describeKey describes what may be a key; nil for what is none.
func describeKey(text []byte) (*Key, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			return describeCertificate(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return &Key{Kind: "PKCS#8", Secret: secretLocked}, nil
		case "PRIVATE KEY":
			return &Key{Kind: "PKCS#8", Secret: secretOpen}, nil
		case "RSA PRIVATE KEY", "EC PRIVATE KEY":
			k := &Key{Kind: map[string]string{"RSA PRIVATE KEY": "PKCS#1", "EC PRIVATE KEY": "SEC 1"}[block.Type], Secret: secretOpen}
			if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") { // RFC 1421
				k.Secret = secretLocked
			}
			return k, nil
		}
	}
	if c, err := x509.ParseCertificate(text); err == nil {
		return describeCertificate(c.Raw)
	}
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(text, []byte("-----BEGIN PGP P")) {
		read = openpgp.ReadArmoredKeyRing
	} else if len(text) == 0 || text[0]&0x80 == 0 {
		return nil, nil
	}
	entities, err := read(bytes.NewReader(text))
	if err != nil {
		if text[0] == '-' {
			return nil, fmt.Errorf("OpenPGP key: %w", err)
		}
		return nil, nil
	}
	if len(entities) != 1 {
		return nil, fmt.Errorf("%d OpenPGP keys, want one", len(entities))
	}
	return describeOpenPGP(entities[0]), nil
}

func describeOpenPGP(e *openpgp.Entity) *Key {
	k := describePacket(e.PrimaryKey, e.PrivateKey)
	k.Kind, k.Names = "OpenPGP", slices.Sorted(maps.Keys(e.Identities))
	if sig, err := e.PrimarySelfSignature(time.Time{}, nil); err == nil {
		k.describeUse(sig)
	}
	for _, s := range e.Subkeys {
		sub := describePacket(s.PublicKey, s.PrivateKey)
		sub.Kind = "subkey"
		if sig, err := s.LatestValidBindingSignature(time.Time{}, nil); err == nil {
			sub.describeUse(sig)
		}
		k.Subkeys = append(k.Subkeys, *sub)
	}
	return k
}

func describePacket(public *packet.PublicKey, secret *packet.PrivateKey) *Key {
	created := public.CreationTime.UTC()
	k := &Key{Fingerprint: public.Fingerprint, Created: &created, Algorithm: fmt.Sprintf("algorithm %d", public.PubKeyAlgo)}
	bits, err := public.BitLength()
	name := map[packet.PublicKeyAlgorithm]string{
		packet.PubKeyAlgoRSA: "RSA", packet.PubKeyAlgoEdDSA: "EdDSA", packet.PubKeyAlgoECDSA: "ECDSA", packet.PubKeyAlgoECDH: "ECDH", packet.PubKeyAlgoEd25519: "Ed25519",
	}[public.PubKeyAlgo]
	if name != "" {
		k.Algorithm = name
		if err == nil {
			k.Algorithm = fmt.Sprintf("%s, %d bits", name, bits)
		}
	}
	switch {
	case secret == nil:
	case secret.Dummy():
		k.Secret = "elsewhere"
	case secret.Encrypted:
		k.Secret = secretLocked
	default:
		k.Secret = secretOpen
	}
	return k
}

func (k *Key) describeUse(sig *packet.Signature) {
	for _, use := range []struct {
		has  bool
		name string
	}{{sig.FlagCertify, "certify"}, {sig.FlagSign, "sign"}, {sig.FlagEncryptCommunications || sig.FlagEncryptStorage, "encrypt"}} {
		if use.has {
			k.Uses = append(k.Uses, use.name)
		}
	}
	if sig.KeyLifetimeSecs != nil && *sig.KeyLifetimeSecs > 0 {
		expires := k.Created.Add(time.Duration(*sig.KeyLifetimeSecs) * time.Second)
		k.Expires = &expires
	}
}

func describeCertificate(der []byte) (*Key, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	created, expires := c.NotBefore.UTC(), c.NotAfter.UTC()
	k := &Key{Kind: "certificate", Fingerprint: sum(c.Raw), Names: []string{c.Subject.String()}, Created: &created, Expires: &expires, Algorithm: c.PublicKeyAlgorithm.String()}
	switch p := c.PublicKey.(type) {
	case *rsa.PublicKey:
		k.Algorithm = fmt.Sprintf("RSA, %d bits", p.N.BitLen())
	case *ecdsa.PublicKey:
		k.Algorithm = "ECDSA, " + p.Curve.Params().Name
	}
	if issuer := c.Issuer.String(); issuer != c.Subject.String() {
		k.Names = append(k.Names, "by "+issuer)
	}
	return k, nil
}

func (k *Key) text(w io.Writer) {
	line(w, "%s\t%s\n", k.Kind, k.Algorithm)
	if len(k.Fingerprint) > 0 {
		line(w, "  fingerprint\t%X\n", []byte(k.Fingerprint))
	}
	for _, name := range k.Names {
		line(w, "  name\t%s\n", name)
	}
	if k.Created != nil {
		expires := "never expires"
		if k.Expires != nil {
			expires = "expires " + k.Expires.Format(time.RFC3339)
		}
		line(w, "  created\t%s, %s\n", k.Created.Format(time.RFC3339), expires)
	}
	if len(k.Uses) > 0 {
		line(w, "  may\t%v\n", k.Uses)
	}
	if k.Secret != "" {
		line(w, "  secret part\t%s\n", k.Secret)
	}
	for i := range k.Subkeys {
		k.Subkeys[i].text(w)
	}
}
