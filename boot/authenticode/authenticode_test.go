package authenticode

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

func signingTime() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }

type identity struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// newIdentity makes a certificate, signed by issuer or by itself.
func newIdentity(name string, serial int64, issuer *identity) *identity {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             signingTime().AddDate(-1, 0, 0),
		NotAfter:              signingTime().AddDate(10, 0, 0),
		IsCA:                  issuer == nil,
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &identity{key, cert}
}

// identities are made once: RSA keys take their time.
type identities struct{ owner, stranger, issued, twin *identity }

var makeIdentities = sync.OnceValue(func() identities {
	owner := newIdentity("owner db", 1, nil)
	return identities{
		owner:    owner,
		stranger: newIdentity("stranger", 2, nil),
		issued:   newIdentity("issued by owner", 3, owner),
		twin:     newIdentity("owner db", 1, nil), // same name and serial, other key
	}
})

func testImage(t testing.TB) []byte {
	t.Helper()
	image, err := uki.Build(ukitest.Stub("257.1"), uki.Payload{
		Linux: ukitest.Image(ukitest.Section{Name: ".text", Data: bytes.Repeat([]byte{0x90}, 9000)}), Cmdline: []byte("quiet"),
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func sign(t testing.TB, image []byte, id *identity) []byte {
	t.Helper()
	signed, err := Sign(image, id.key, id.cert, signingTime())
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func roots(ids ...*identity) []*x509.Certificate {
	var certs []*x509.Certificate
	for _, id := range ids {
		certs = append(certs, id.cert)
	}
	return certs
}

func TestSignAndVerify(t *testing.T) {
	ids := makeIdentities()
	image := testImage(t)
	once := sign(t, image, ids.owner)
	if again := sign(t, image, ids.owner); !bytes.Equal(once, again) {
		t.Error("two signatures differ")
	}
	before, err := Digest(image)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := Digest(once); err != nil || after != before {
		t.Errorf("hash after signing is %x, %v; want %x", after, err, before)
	}
	twice := sign(t, once, ids.stranger)
	tests := []struct {
		name  string
		image []byte
		roots []*x509.Certificate
		want  *x509.Certificate
		err   error
	}{
		{"owner", once, roots(ids.owner), ids.owner.cert, nil},
		{"owner among others", once, roots(ids.stranger, ids.owner), ids.owner.cert, nil},
		{"issued", sign(t, image, ids.issued), roots(ids.owner), ids.issued.cert, nil},
		{"first of two", twice, roots(ids.owner), ids.owner.cert, nil},
		{"second of two", twice, roots(ids.stranger), ids.stranger.cert, nil},
		{"unsigned", image, roots(ids.owner), nil, ErrNotSigned},
		{"stranger", sign(t, image, ids.stranger), roots(ids.owner), nil, ErrUntrusted},
		{"twin of the owner", sign(t, image, ids.twin), roots(ids.owner), nil, ErrUntrusted},
		{"nobody trusted", once, nil, nil, ErrUntrusted},
		{"issuer of the trusted", once, roots(ids.issued), nil, ErrUntrusted},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Verify(test.image, test.roots)
			if !errors.Is(err, test.err) || !got.Equal(test.want) && got != test.want {
				t.Errorf("signer is %v, %v; want %v, %v", got, err, test.want, test.err)
			}
		})
	}
	if stripped, err := Strip(twice); err != nil || !bytes.Equal(stripped, image) {
		t.Errorf("stripped image of %d bytes, %v; want the %d from before", len(stripped), err, len(image))
	}
}

func TestSignRefuses(t *testing.T) {
	ids := makeIdentities()
	image := testImage(t)
	elliptical, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		image []byte
		key   crypto.Signer
		at    time.Time
		want  string
	}{
		{"ECDSA", image, elliptical, signingTime(), "not RSA"},
		{"another's key", image, ids.stranger.key, signingTime(), "do not belong together"},
		{"year 2100", image, ids.owner.key, signingTime().AddDate(74, 0, 0), "between 1950 and 2049"},
		{"no image", nil, ids.owner.key, signingTime(), "no MZ header"},
		{"cut image", image[:len(image)-1], ids.owner.key, signingTime(), "ends at offset"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Sign(test.image, test.key, ids.owner.cert, test.at); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// Each of these was a good image once. FAULTS 52
func TestVerifyRefuses(t *testing.T) {
	le := binary.LittleEndian
	ids := makeIdentities()
	image := testImage(t)
	other := append([]byte{}, image...)
	other[len(other)-1]++
	imageSum, _ := Digest(image)
	otherSum, _ := Digest(other)
	content := func(sum [32]byte) []byte {
		b, err := indirectData(sum)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good, evil := content(imageSum), content(otherSum)
	goodMessage, evilMessage := sha256.Sum256(good), sha256.Sum256(evil)
	signed := sign(t, image, ids.owner)
	directory := bytes.Index(signed, []byte("PE\x00\x00")) + 24 + 112 + 4*8
	moved := func() []byte { // the owner's signature, put behind another image
		b := append([]byte{}, signed...)
		b[len(other)-1] = other[len(other)-1]
		return b
	}
	attributes := func(content []byte) []byte {
		b, err := signedAttributes(content, signingTime())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rsaSign := func(data []byte) []byte {
		hash := sha256.Sum256(data)
		sig, err := ids.owner.key.Sign(rand.Reader, hash[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	attach := func(base []byte, content []byte, certs []*x509.Certificate, attributes, sig []byte, repeat int) []byte {
		info := signerInfo(ids.owner.cert, attributes, sig)
		der, err := signedData(content, certs, info)
		if repeat == 2 {
			der, err = signedData(content, certs, info, info)
		}
		if err != nil {
			t.Fatal(err)
		}
		file, err := parse(base)
		if err != nil {
			t.Fatal(err)
		}
		return withTable(base, file, appendEntry(nil, der))
	}
	owner := roots(ids.owner)
	tests := []struct {
		name  string
		image []byte
		want  string
	}{
		{"section changed", moved(), "it is for an image of hash"},
		{"section header changed", func() []byte { b := append([]byte{}, signed...); b[directory+88+36]++; return b }(), "it is for an image of hash"},
		{"image hash replaced", bytes.Replace(moved(), imageSum[:], otherSum[:], 1), "what was signed is not its content"},
		{"image hash and message digest replaced", bytes.Replace(bytes.Replace(moved(), imageSum[:], otherSum[:], 1), goodMessage[:], evilMessage[:], 1), "did not make it"},
		{"signature over the content", attach(other, evil, owner, nil, rsaSign(evil), 1), "no signed attributes"},
		{"attributes of another content", attach(other, evil, owner, attributes(good), rsaSign(attributes(good)), 1), "what was signed is not its content"},
		{"two signers", attach(image, good, owner, attributes(good), rsaSign(attributes(good)), 2), "more than one signer"},
		{"no certificate", attach(image, good, nil, attributes(good), rsaSign(attributes(good)), 1), "certificate is not in it"},
		{"two certificates of that name", attach(image, good, roots(ids.twin, ids.owner), attributes(good), rsaSign(attributes(good)), 1), "two certificates pass"},
		{"only the twin's certificate", attach(image, good, roots(ids.twin), attributes(good), rsaSign(attributes(good)), 1), "did not make it"},
		{"bytes behind the table", append(append([]byte{}, signed...), 0, 0, 0, 0, 0, 0, 0, 0), "want nothing behind it"},
		{"bytes in the table", func() []byte {
			b := append(append([]byte{}, signed...), 1, 2, 3, 4, 5, 6, 7, 8)
			le.PutUint32(b[directory+4:], le.Uint32(b[directory+4:])+8)
			return b
		}(), "are left"},
		{"padding in use", func() []byte {
			b := append([]byte{}, signed...)
			size := le.Uint32(b[len(image):])
			if len(b)-len(image) == int(size) {
				t.Fatal("this signature needs no padding; change the certificate's name")
			}
			b[len(b)-1] = 1
			return b
		}(), "padding behind a signature"},
		{"signature longer than the table", func() []byte {
			b := append([]byte{}, signed...)
			le.PutUint32(b[len(image):], 0xffffffff)
			return b
		}(), "are left"},
		{"signature of no length", func() []byte {
			b := append([]byte{}, signed...)
			le.PutUint32(b[len(image):], 0)
			return b
		}(), "are left"},
		{"X.509 entry", func() []byte { b := append([]byte{}, signed...); b[len(image)+6] = 1; return b }(), "PKCS #7"},
		{"table over the sections", func() []byte {
			b := append([]byte{}, signed...)
			le.PutUint32(b[directory:], le.Uint32(b[directory:])-512)
			le.PutUint32(b[directory+4:], le.Uint32(b[directory+4:])+512)
			return b
		}(), "overlaps the sections"},
		{"bad one behind a good one", func() []byte {
			bad := sign(t, other, ids.stranger)
			table := append(append([]byte{}, signed[len(image):]...), bad[len(image):]...)
			file, err := parse(image)
			if err != nil {
				t.Fatal(err)
			}
			return withTable(image, file, table)
		}(), "signature 2 of 2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cert, err := Verify(test.image, owner)
			if err == nil || cert != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("signer %v, error %v; want one with %q", cert, err, test.want)
			}
		})
	}
	if _, err := Verify(attach(image, good, owner, attributes(good), rsaSign(attributes(good)), 1), owner); err != nil {
		t.Errorf("the signature that the faults were put into: %v", err)
	}
}

// Any bit of a signed image changed, but for the checksum that nobody
// verifies, makes it bad. FAULTS 52
func TestVerifyEveryByte(t *testing.T) {
	ids := makeIdentities()
	image := ukitest.Stub("257.1")
	signed := sign(t, image, ids.owner)
	checksum := 64 + 24 + 64
	for i := range signed {
		if i >= checksum && i < checksum+4 {
			continue
		}
		signed[i] ^= 0x10
		// In the signature, bytes that state nothing may differ: its version of a
		// file name, unused parameters. What they leave is still the owner's word.
		cert, err := Verify(signed, roots(ids.owner))
		if err == nil && (i < len(image) || !cert.Equal(ids.owner.cert)) {
			t.Fatalf("byte %d changed, and still signed by %v", i, cert.Subject)
		}
		signed[i] ^= 0x10
	}
}

// golden is an image that was signed once, with a key that no longer exists.
func golden(t testing.TB) (signed []byte, owner *x509.Certificate) {
	t.Helper()
	signed, err := os.ReadFile("testdata/signed.efi")
	if err != nil {
		t.Fatal(err)
	}
	der, err := os.ReadFile("testdata/owner.der")
	if err != nil {
		t.Fatal(err)
	}
	owner, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed, owner
}

func FuzzVerify(f *testing.F) {
	signed, owner := golden(f)
	want, err := Digest(signed)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := Verify(signed, []*x509.Certificate{owner}); err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(ukitest.Stub("257.1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Strip(data)
		if _, err := Verify(data, []*x509.Certificate{owner}); err != nil {
			return
		}
		if got, err := Digest(data); err != nil || got != want {
			t.Errorf("an image of hash %x, %v, passes for signed, but only %x was", got, err, want)
		}
	})
}

// FuzzSignature feeds the PKCS #7 parser alone, which FuzzVerify reaches only
// with a sound image around it.
func FuzzSignature(f *testing.F) {
	signed, owner := golden(f)
	want, err := Digest(signed)
	if err != nil {
		f.Fatal(err)
	}
	list, err := entries(signed[len(ukitest.Stub("257.1")):])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list[0])
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := parseSignature(der)
		if err != nil {
			return
		}
		signer, err := verifySignature(der, [sha256.Size]byte(s.imageSum))
		if err == nil && isTrusted(signer, []*x509.Certificate{owner}) && !bytes.Equal(s.imageSum, want[:]) {
			t.Errorf("signature for hash %x passes, but only %x was signed", s.imageSum, want)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	ids := makeIdentities()
	image, err := uki.Build(ukitest.Stub("257.1"), uki.Payload{Linux: make([]byte, 12<<20), Initrd: make([]byte, 36<<20)}.Sections())
	if err != nil {
		b.Fatal(err)
	}
	signed := sign(b, image, ids.owner)
	b.SetBytes(int64(len(signed)))
	for b.Loop() {
		if _, err := Verify(signed, roots(ids.owner)); err != nil {
			b.Fatal(err)
		}
	}
}
