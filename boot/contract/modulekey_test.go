package contract

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"
)

func moduleCertificate(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "modules"}, NotBefore: time.Unix(1.7e9, 0), NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The certificate is found after the other archives, with extensions and without, and nothing
// else of the initramfs is taken for it.
func TestModuleKeyFromInitrd(t *testing.T) {
	der := moduleCertificate(t)
	first, err := Archive(sample())
	if err != nil {
		t.Fatal(err)
	}
	list, err := ExtensionsArchive(sampleExtensions())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ModuleKeyArchive(der)
	if err != nil {
		t.Fatal(err)
	}
	packed := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0}
	for name, c := range map[string]struct {
		parts      [][]byte
		want       []byte
		extensions int
	}{
		"without extensions": {[][]byte{first, own, packed}, der, 0},
		"with extensions":    {[][]byte{first, list, own, packed}, der, len(sampleExtensions())},
		"none":               {[][]byte{first, list, packed}, nil, len(sampleExtensions())},
		"nothing":            {nil, nil, 0},
	} {
		initrd := bytes.Join(c.parts, nil)
		if got, err := ModuleKeyFromInitrd(initrd); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		if found, err := ExtensionsFromInitrd(initrd); err != nil || len(found) != c.extensions {
			t.Errorf("%s: extensions %v, %v", name, found, err)
		}
	}
}

func TestParseModuleKey(t *testing.T) {
	for name, text := range map[string]string{
		"another format":   `{"format":2,"certificate":"AA=="}`,
		"no certificate":   `{"format":1}`,
		"not one":          `{"format":1,"certificate":"AAAA"}`,
		"an unknown field": `{"format":1,"certificate":"AAAA","more":1}`,
		"too long":         strings.Repeat(" ", MaxModuleKey+1),
	} {
		if der, err := ParseModuleKey([]byte(text)); err == nil {
			t.Errorf("%s: %x", name, der)
		}
	}
	weak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(1.7e9, 0), NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, weak.Public(), weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ModuleKeyArchive(der); err == nil || !strings.Contains(err.Error(), "not of an RSA key") {
		t.Errorf("a certificate that firmware does not take: %v", err)
	}
	if _, err := ModuleKeyArchive(make([]byte, maxModuleCertificate+1)); err == nil {
		t.Error("a certificate that is too large was packed")
	}
	if a, err := ModuleKeyArchive(nil); err != nil || len(a) > 0 {
		t.Errorf("an archive of nothing: %d bytes, %v", len(a), err)
	}
}

func FuzzModuleKeyFromInitrd(f *testing.F) {
	own, err := ModuleKeyArchive(moduleCertificate(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, initrd []byte) {
		if der, err := ModuleKeyFromInitrd(initrd); err != nil && der != nil {
			t.Error("a certificate and an error")
		}
	})
}
