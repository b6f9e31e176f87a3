package scan

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	stdpem "encoding/pem"
	"strings"
	"testing"
)

// gnutlsP256 is the key by which GnuTLS tests its ECDSA at every start in FIPS mode
// (lib/crypto-selftests-pk.c).
const gnutlsP256 = `MHcCAQEEIPAKWV7+pZe9c5EubMNfAEKWRQtP/MvlO9HehwHmJssNoAoGCCqGSM49
AwEHoUQDQgAE2CNONRio3ciuXtoomJKs3MdbzLbd44VPhtzJN30VLFm5gvnfiCj2
zzz7pl9Cv0ECHl6yedNI8QEKdcwCDgEmkQ==`

// u2fExample is the attestation key of the example in FIDO's U2F Raw Message Formats 1.2,
// section 8.1, which Chromium and so QtWebEngine have.
const u2fExample = `MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8/zMDQDYAxlU+Qhk
1Dwkf0v18GZca1DMF3SaJ9HPdmShRANCAASNYX5lyVCOZLzFZzrIKmeZ2jwURmgs
JYxGP//fWN/S+j5sN4tT15XEpN/7QZnt14YvI6uvAgO0uJEboFaZlOEB`

// TestSelfTests finds no key by which a library tests itself, in whatever form and
// file, and every other key beside it.
func TestSelfTests(t *testing.T) {
	der := must[[]byte](t)(base64.StdEncoding.DecodeString(strings.ReplaceAll(gnutlsP256, "\n", "")))
	inPEM := func(der []byte) string {
		return string(stdpem.EncodeToMemory(&stdpem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	}
	changed := append([]byte(nil), der...)
	changed[20] ^= 1
	fresh := must[[]byte](t)(x509.MarshalECPrivateKey(must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))
	oneLine := "-----BEGIN EC PRIVATE KEY-----" + strings.ReplaceAll(gnutlsP256, "\n", "") + "-----END EC PRIVATE KEY-----"
	for _, c := range []struct{ name, text, rule string }{
		{"PEM", inPEM(der), ""},
		{"PEM on one line, as the library has it", "\x00" + oneLine + "\x00error", ""},
		{"PEM with Windows' line ends", strings.ReplaceAll(inPEM(der), "\n", "\r\n"), ""},
		{"DER", "\x00\x00" + string(der) + "\x00\x00", ""},
		{"Base64 of DER", base64.StdEncoding.EncodeToString(der) + "\n", ""},
		{"PEM of another key", inPEM(changed), rulePEM},
		{"DER of another key", string(changed), ruleDER},
		{"PEM whose end is missing", strings.TrimSuffix(inPEM(der), "-----END EC PRIVATE KEY-----\n"), rulePEM},
		{"DER of a protocol's example", string(must[[]byte](t)(base64.StdEncoding.DecodeString(u2fExample))), ""},
		{"another key after it", inPEM(der) + inPEM(fresh), rulePEM},
		{"another key before it", inPEM(fresh) + inPEM(der), rulePEM},
		{"another key after it, in DER", string(der) + string(fresh), ruleDER},
		{"another key under its label", "-----BEGIN EC PRIVATE KEY-----\n" + gnutlsP256 + "\n" + inPEM(fresh), rulePEM},
	} {
		s := New(nil)
		if err := s.Bytes(t.Context(), "/f", []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		found, _ := s.Findings()
		switch {
		case c.rule == "" && len(found) > 0:
			t.Errorf("%s: %v", c.name, found)
		case c.rule != "" && (len(found) == 0 || found[0].Rule != c.rule):
			t.Errorf("%s: %v, want %s", c.name, found, c.rule)
		}
	}
}
