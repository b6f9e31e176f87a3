package policy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// cheap is the least that a PIN may cost.
func cheap(t testing.TB) Stretch {
	t.Helper()
	s, err := NewStretch(bytes.NewReader(bytes.Repeat([]byte{7}, 16)), minStretchPasses, MinStretchMemory, 1)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pinOf(t testing.TB, s Stretch, text string) *PIN {
	t.Helper()
	p, err := s.PIN([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What a PIN gives is a part of the format, and nothing of it follows from the secret or
// the PIN alone.
func TestPINDerivationsAreFixed(t *testing.T) {
	s := cheap(t)
	p := pinOf(t, s, "1234")
	if got, want := hex.EncodeToString(p.Auth()), "a34b805351de2c3e8f1066c9a49e090a9ddd16840bf311d8b17978fe5867fce1"; got != want {
		t.Errorf("authorisation value %s, want %s", got, want)
	}
	m := fixed(t)
	without := string(m.LUKSPassphrase())
	m.SetPIN(p)
	with := string(m.LUKSPassphrase())
	if want := "783563afc2fc4f4e8f34cee0b45544712e3bdd7bbfe60ba4a7050aa351f63f3e"; with != want {
		t.Errorf("passphrase %s, want %s", with, want)
	}
	m.SetPIN(pinOf(t, s, "1235"))
	if other := string(m.LUKSPassphrase()); other == with || other == without {
		t.Error("another PIN gives the same passphrase")
	}
	m.SetPIN(nil)
	if m.PIN() != nil || string(m.LUKSPassphrase()) != without {
		t.Error("without its PIN the secret is not what it was")
	}
	other := s
	other.Salt[0]++
	if pinOf(t, other, "1234").Equal(p) || bytes.Equal(pinOf(t, other, "1234").Auth(), p.Auth()) {
		t.Error("the salt makes no difference")
	}
}

// A TPM takes zero bytes off the end of an authorisation value.
func TestPINAuthEnds(t *testing.T) {
	for i := range 600 {
		p := PIN{key: [32]byte{byte(i), byte(i >> 8)}}
		if auth := p.Auth(); len(auth) != 32 || auth[31] == 0 {
			t.Fatalf("%x", auth)
		}
	}
}

func TestPINRefuses(t *testing.T) {
	s := cheap(t)
	for _, text := range []string{"", "123", strings.Repeat("x", MaxPIN+1)} {
		if _, err := s.PIN([]byte(text)); !errors.Is(err, ErrPINLength) {
			t.Errorf("%d characters: %v", len(text), err)
		}
	}
	for name, change := range map[string]func(*Stretch){
		"one pass":     func(s *Stretch) { s.Passes = 1 },
		"no memory":    func(s *Stretch) { s.Memory = MinStretchMemory - 1 },
		"all memory":   func(s *Stretch) { s.Memory = maxStretchMemory + 1 },
		"no lane":      func(s *Stretch) { s.Lanes = 0 },
		"five lanes":   func(s *Stretch) { s.Lanes = 5 },
		"hours":        func(s *Stretch) { s.Passes = 1 << 20 },
		"nothing said": func(s *Stretch) { *s = Stretch{} },
	} {
		bad := s
		change(&bad)
		if _, err := bad.PIN([]byte("1234")); err == nil {
			t.Errorf("%s was taken", name)
		}
		sealed := sealedNV()
		sealed.Guard(bad)
		if err := sealed.Validate(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s in a sealed object: %v", name, err)
		}
	}
	if _, err := NewStretch(bytes.NewReader(nil), minStretchPasses, MinStretchMemory, 1); err == nil {
		t.Error("a salt of nothing")
	}
}

func TestKeepPIN(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	s, volumeKey := cheap(t), bytes.Repeat([]byte{9}, 64)
	p := pinOf(t, s, "correct horse")
	box, err := p.Keep(random, volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := KeptPIN(volumeKey, box, s); err != nil || !got.Equal(p) {
		t.Errorf("%v", err)
	}
	other := s
	other.Passes++
	for name, try := range map[string]func() (*PIN, error){
		"another volume":  func() (*PIN, error) { return KeptPIN(bytes.Repeat([]byte{8}, 64), box, s) },
		"another stretch": func() (*PIN, error) { return KeptPIN(volumeKey, box, other) },
		"a short box":     func() (*PIN, error) { return KeptPIN(volumeKey, box[:5], s) },
		"an altered box":  func() (*PIN, error) { b := bytes.Clone(box); b[20] ^= 1; return KeptPIN(volumeKey, b, s) },
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s opens it", name)
		}
	}
}

func TestPINIsNotPrinted(t *testing.T) { // FAULTS 75
	p := pinOf(t, cheap(t), "1234")
	m := fixed(t)
	m.SetPIN(p)
	for _, v := range []any{p, *p, m, *m, struct{ P *PIN }{p}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s"} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, hex.EncodeToString(p.key[:4])) || strings.Contains(out, fmt.Sprint(p.key[:4])[1:]) {
				t.Errorf("%s of %T prints %s", verb, v, out)
			}
		}
	}
	if out, err := json.Marshal(p); err == nil {
		t.Errorf("marshalled as %s", out)
	}
	m.Wipe()
	if m.pin.key != [32]byte{} {
		t.Error("not wiped")
	}
	if p.key == [32]byte{} {
		t.Error("wiped with the secret that had a copy of it")
	}
}

// An object that asks for a PIN is of a version of its own; one that does not is what it
// was, byte for byte.
func TestSealedWithPIN(t *testing.T) {
	guarded := func(s *Sealed) *Sealed {
		s.Guard(cheap(t))
		d, err := s.Policy()
		if err != nil {
			t.Fatal(err)
		}
		template := public(d)
		template[6] &^= 0x04 // noDA, bit 10 of the attributes
		s.Public = template
		return s
	}
	for name, s := range map[string]*Sealed{"nv": guarded(sealedNV()), "one boot": guarded(sealedPCR(t, 1)), "eight": guarded(sealedPCR(t, 8))} {
		b, err := s.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := ParseSealed(b)
		if err != nil || !reflect.DeepEqual(s, back) || back.Version != 2 {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
		without := *s
		without.PIN = nil
		for _, version := range []int{1, 2} {
			without.Version = version
			if err := without.Validate(); !errors.Is(err, ErrSealed) {
				t.Errorf("%s without its PIN, version %d: %v", name, version, err)
			}
		}
		s.Public = public(AuthValue(AuthorizeNV(*sealedNV().NVName)))
		if err := s.Validate(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s exempt from counting: %v", name, err)
		}
	}
	b, err := sealedNV().Encode()
	if err != nil || strings.Contains(string(b), "pin") || !strings.HasPrefix(string(b), `{"version":1,`) {
		t.Errorf("%s, %v", b, err)
	}
}

// One PIN in eight could not be used: go-tpm and the TPM did not agree on a value with a
// zero byte in it.
func TestAuthorisationsWithoutZeros(t *testing.T) {
	for i := range 256 {
		p := PIN{key: [32]byte{byte(i)}}
		for what, auth := range map[string][]byte{"PIN": p.Auth(), "lockout": LockoutAuth([]byte{byte(i)})} {
			if len(auth) != 32 || bytes.IndexByte(auth, 0) >= 0 {
				t.Fatalf("%s %d: %x", what, i, auth)
			}
		}
	}
}
