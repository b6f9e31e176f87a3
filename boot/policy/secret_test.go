package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

func fixed(t *testing.T) *Secret {
	t.Helper()
	s, err := SecretFrom(bytes.Repeat([]byte{0x5a}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Computed once by another implementation of HKDF and HMAC.
const (
	goldenPassphrase  = "838066ed66bd84bb18277650e912c04725ef1e3773edb115418614d3e4bd4d6d"
	goldenWriteKey    = "c8b48971011cdbaa915541af0b42d0937fb1b948b4671d4b5c6cea5a54cbbebd"
	goldenFingerprint = "1bd9f15017314cfcb79427ac62e1cc5f405bc1aef707c8e18914f413b0f1f2f1"
	goldenEvent       = "46f4a563c9331114c4e84563d1ed160deeb20c4f79e8c2f0ea82b595142e9f46"
	// The index's Name with that write key: fixed by the layout of its public area.
	goldenIndex = "000b1f8bb2591deef16acb2ec20a8a9d536f3526dfb8335d7e5b9f681ae8a9dab5f8"
)

// What is derived is a format: a machine's data opens with it for years.
func TestDerivationsAreFixed(t *testing.T) {
	s := fixed(t)
	key, err := s.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	name, err := Index{Handle: 0x01A48600, Key: &key.PublicKey}.Name()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, event := VolumeFingerprint([]byte("volume key")), VolumeEvent([]byte("volume key"))
	for what, c := range map[string]struct{ got, want string }{
		"passphrase":  {string(s.LUKSPassphrase()), goldenPassphrase},
		"write key":   {hex.EncodeToString(raw), goldenWriteKey},
		"index":       {name.String(), goldenIndex},
		"fingerprint": {hex.EncodeToString(fingerprint[:]), goldenFingerprint},
		"event":       {hex.EncodeToString(event[:]), goldenEvent},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", what, c.got, c.want)
		}
	}
}

// OpenSSL derives the passphrase alike.
func TestPassphraseAgreesWithOpenSSL(t *testing.T) {
	out := testkit.Run(t, "openssl", "kdf", "-keylen", "32", "-kdfopt", "digest:SHA256",
		"-kdfopt", "hexkey:"+strings.Repeat("5a", 32), "-kdfopt", "info:"+labelLUKS, "HKDF")
	want := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(out), ":", ""))
	if got := string(fixed(t).LUKSPassphrase()); got != want {
		t.Errorf("%s, openssl has %s", got, want)
	}
}

func TestWriteKeySigns(t *testing.T) {
	s, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.WriteKey()
	if err != nil || !a.Equal(b) {
		t.Fatalf("the key is not derived the same way twice: %v", err)
	}
	digest := sha256.Sum256([]byte("x"))
	sig, err := ecdsa.SignASN1(rand.Reader, a, digest[:])
	if err != nil || !ecdsa.VerifyASN1(&b.PublicKey, digest[:], sig) {
		t.Errorf("its signature does not verify: %v", err)
	}
}

func TestBox(t *testing.T) {
	s := fixed(t)
	plain := []byte("a private key")
	box, err := s.Box(rand.Reader, "db", plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(box, plain) {
		t.Error("it is in clear")
	}
	if got, err := s.Unbox("db", box); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%q, %v", got, err)
	}
	other, _ := NewSecret(rand.Reader)
	bad := bytes.Clone(box)
	bad[len(bad)-1] ^= 1
	for name, try := range map[string]func() ([]byte, error){
		"another machine": func() ([]byte, error) { return other.Unbox("db", box) },
		"another purpose": func() ([]byte, error) { return s.Unbox("KEK", box) },
		"altered":         func() ([]byte, error) { return s.Unbox("db", bad) },
		"cut":             func() ([]byte, error) { return s.Unbox("db", box[:12]) },
		"empty":           func() ([]byte, error) { return s.Unbox("db", nil) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestEscrow(t *testing.T) {
	s := fixed(t)
	recovery := bytes.Repeat([]byte{9}, 32)
	e, err := Escrow(rand.Reader, recovery, s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenEscrow(recovery, e); err != nil || !got.Equal(s) || got.Guarded() {
		t.Errorf("%v, guarded %t", err, got.Guarded())
	}
	s.Guard()
	with, err := Escrow(rand.Reader, recovery, s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenEscrow(recovery, with); err != nil || !got.Equal(s) || !got.Guarded() || got.PIN() != nil {
		t.Errorf("of a secret with a PIN: %v, guarded %t", err, got.Guarded())
	}
	recovery[0]++
	if _, err := OpenEscrow(recovery, e); err == nil {
		t.Error("a wrong recovery key opens it")
	}
	if _, err := Escrow(rand.Reader, []byte("hunter2"), s); err == nil {
		t.Error("a passphrase is taken for a recovery key")
	}
}

func TestSecretIsNotPrinted(t *testing.T) { // FAULTS 75
	s := fixed(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		for _, arg := range []any{s, *s, struct{ S Secret }{*s}, []*Secret{s}} {
			if out := fmt.Sprintf(verb, arg); strings.Contains(strings.ToLower(out), "5a5a") || strings.Contains(out, "90 90") || strings.Contains(out, "ZZ") {
				t.Errorf("%s prints %q", verb, out)
			}
		}
	}
	if b, err := json.Marshal(s); err == nil {
		t.Errorf("JSON: %s", b)
	}
	s.Wipe()
	if !bytes.Equal(s.Bytes(), make([]byte, 32)) {
		t.Error("Wipe leaves it")
	}
	in := bytes.Repeat([]byte{1}, 31)
	if _, err := SecretFrom(in); err == nil || !bytes.Equal(in, make([]byte, 31)) {
		t.Errorf("31 bytes: %v, input left as %x", err, in)
	}
}
