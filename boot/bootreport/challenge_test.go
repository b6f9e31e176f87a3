package bootreport_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/bootreport/reporttest"
)

var certified = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// certificate makes one that signer signs for a key: self-signed without one.
func certificate(t testing.TB, name string, public crypto.PublicKey, by *x509.Certificate, signer crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: certified, NotAfter: certified.AddDate(1, 0, 0), BasicConstraintsValid: true,
	}
	change(template)
	if by == nil {
		by = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func authority(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

// endorsement has no subject and names the TPM in a critical alternative name, as the
// profile says.
func endorsement(c *x509.Certificate) {
	c.Subject = pkix.Name{}
	c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	name, err := asn1.Marshal(pkix.Name{CommonName: "id:00001014"}.ToRDNSequence())
	if err != nil {
		panic(err)
	}
	alt, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		panic(err)
	}
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: alt}}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestCheckEndorsement(t *testing.T) {
	t.Parallel()
	rootKey, middleKey, ek := newKey(t), newKey(t), newKey(t)
	root := certificate(t, "root", rootKey.Public(), nil, rootKey, authority)
	middle := certificate(t, "middle", middleKey.Public(), root, rootKey, authority)
	stranger := certificate(t, "root", middleKey.Public(), nil, middleKey, authority)
	good := certificate(t, "", ek.Public(), middle, middleKey, endorsement)
	plain := certificate(t, "a web server", ek.Public(), middle, middleKey, func(*x509.Certificate) {})
	strange := certificate(t, "", ek.Public(), middle, middleKey, func(c *x509.Certificate) {
		endorsement(c)
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	})
	for name, tt := range map[string]struct {
		certificate *x509.Certificate
		by          []*x509.Certificate
		when        time.Time
		want        string
	}{
		"good":                 {good, []*x509.Certificate{root, middle}, certified.AddDate(0, 1, 0), ""},
		"no root":              {good, []*x509.Certificate{middle}, certified.AddDate(0, 1, 0), "unknown authority"},
		"nothing between":      {good, []*x509.Certificate{root}, certified.AddDate(0, 1, 0), "unknown authority"},
		"another root":         {good, []*x509.Certificate{stranger, middle}, certified.AddDate(0, 1, 0), "unknown authority"},
		"too late":             {good, []*x509.Certificate{root, middle}, certified.AddDate(2, 0, 0), "expired"},
		"not a TPM's":          {plain, []*x509.Certificate{root, middle}, certified.AddDate(0, 1, 0), "2.23.133.8.1 is missing"},
		"an extension unknown": {strange, []*x509.Certificate{root, middle}, certified.AddDate(0, 1, 0), "unhandled critical extension"},
	} {
		err := bootreport.CheckEndorsement(tt.certificate, tt.by, tt.when)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	one := certificate(t, "one", key.Public(), nil, key, authority)
	inPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw})
	for name, tt := range map[string]struct {
		data []byte
		want int
	}{
		"PEM":                {inPEM, 1},
		"two in PEM":         {append(append([]byte("the maker's:\n"), inPEM...), inPEM...), 2},
		"DER":                {one.Raw, 1},
		"padded":             {append(one.Raw[:len(one.Raw):len(one.Raw)], bytes.Repeat([]byte{0xff}, 300)...), 1},
		"with something":     {append(one.Raw[:len(one.Raw):len(one.Raw)], "more"...), 0},
		"cut":                {one.Raw[:len(one.Raw)-1], 0},
		"a private key":      {[]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0},
		"no end":             {inPEM[:len(inPEM)-30], 0},
		"nothing":            {nil, 0},
		"an empty PEM block": {[]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), 0},
	} {
		all, err := bootreport.Certificates(tt.data)
		if len(all) != tt.want && tt.want != 0 || (err == nil) != (tt.want != 0) {
			t.Errorf("%s: %d certificates, %v; want %d", name, len(all), err, tt.want)
		}
	}
}

func TestNewChallengeRefuses(t *testing.T) {
	t.Parallel()
	ca, signer := newKey(t), reporttest.NewSigner(t)
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	ek := certificate(t, "", large.Public(), nil, large, endorsement)
	if _, _, err := bootreport.NewChallenge(rand.Reader, ek, signer.Public()); err == nil || !strings.Contains(err.Error(), "2048 bits or of P-256") {
		t.Errorf("an RSA key of 3072 bits: %v", err)
	}
	ek = certificate(t, "", ca.Public(), nil, ca, endorsement)
	if _, _, err := bootreport.NewChallenge(rand.Reader, ek, []byte("no key")); err == nil {
		t.Error("no attestation key: taken")
	}
}

// What a machine is given comes from anywhere.
func FuzzParseChallenge(f *testing.F) {
	ca, signer := newKey(f), reporttest.NewSigner(f)
	c, _, err := bootreport.NewChallenge(rand.Reader, certificate(f, "", ca.Public(), nil, ca, endorsement), signer.Public())
	if err != nil {
		f.Fatal(err)
	}
	text, err := c.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":1,"key":"","endorsement":"00","credential":"00","secret":"00"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := bootreport.ParseChallenge(data)
		if err != nil {
			return
		}
		if text, err := c.Encode(); err != nil {
			t.Errorf("%s: cannot be written: %v", text, err)
		}
		_, _ = c.EndorsementTemplate()
	})
}
