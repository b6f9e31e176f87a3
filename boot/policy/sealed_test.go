package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func public(d Digest) []byte {
	p := tpm2.Marshal(SealedTemplate(d))
	p[len(p)-1] = 32
	return append(p, bytes.Repeat([]byte{0xab}, 32)...)
}

func sealedNV() *Sealed {
	name := NameOf([]byte("index"))
	s := NewSealed(KindNV, NameOf([]byte("srk")), public(AuthorizeNV(name)), []byte("private"))
	s.NVIndex, s.NVName = 0x01A48600, &name
	return s
}

func sealedPCR(t testing.TB, n int) *Sealed {
	var branches []Digest
	for i := range n {
		branches = append(branches, sum(string(rune('a'+i))))
	}
	d, err := Fixed(branches)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSealed(KindPCR, NameOf([]byte("srk")), public(d), []byte("private"))
	s.PCRs, s.Branches = []int{11, 12, 13}, branches
	return s
}

func TestSealedRoundTrip(t *testing.T) {
	for name, s := range map[string]*Sealed{"nv": sealedNV(), "one boot": sealedPCR(t, 1), "eight": sealedPCR(t, 8)} {
		b, err := s.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := ParseSealed(b)
		if err != nil || !reflect.DeepEqual(s, back) {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
}

// A phrase's object is not taken for a machine secret's, nor the other way round, whatever boots
// they are released to; and it asks for no PIN.
func TestSealedPhrase(t *testing.T) {
	for name, secret := range map[string]*Sealed{"nv": sealedNV(), "one boot": sealedPCR(t, 1), "eight": sealedPCR(t, 8)} {
		phrase := *secret
		phrase.Phrase = true
		d, err := phrase.Policy()
		if err != nil {
			t.Fatal(err)
		}
		phrase.Public = public(d)
		if !phrase.LikeBoots(secret) || !secret.LikeBoots(&phrase) {
			t.Errorf("%s: they are of other boots", name)
		}
		of, err := secret.Encode()
		if err != nil {
			t.Fatal(err)
		}
		text, err := phrase.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if back, err := ParseSealedPhrase(text); err != nil || !reflect.DeepEqual(&phrase, back) {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
		if s, err := ParseSealed(text); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: a phrase is taken for a secret: %+v, %v", name, s, err)
		}
		if s, err := ParseSealedPhrase(of); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: a secret is taken for a phrase: %+v, %v", name, s, err)
		}
		for what, field := range map[string]string{"Phrase": `"Phrase":true`, "phrase": `"phrase":true`} {
			if s, err := ParseSealed([]byte("{" + field + "," + string(text[1:]))); !errors.Is(err, ErrSealed) {
				t.Errorf("%s: an object says that it is a %s: %+v, %v", name, what, s, err)
			}
		}
		phrase.Version, phrase.PIN = 2, &Stretch{}
		if err := phrase.Validate(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s with a PIN: %v", name, err)
		}
	}
}

func TestSealedRefuses(t *testing.T) {
	for name, s := range map[string]func() *Sealed{
		"version":              func() *Sealed { s := sealedNV(); s.Version = 2; return s },
		"kind":                 func() *Sealed { s := sealedNV(); s.Kind = ""; return s },
		"no storage root key":  func() *Sealed { s := sealedNV(); s.SRKName = Name{}; return s },
		"no private area":      func() *Sealed { s := sealedNV(); s.Private = nil; return s },
		"huge private area":    func() *Sealed { s := sealedNV(); s.Private = make([]byte, 1025); return s },
		"no NV name":           func() *Sealed { s := sealedNV(); s.NVName = nil; return s },
		"a persistent handle":  func() *Sealed { s := sealedNV(); s.NVIndex = 0x81000001; return s },
		"NV with branches":     func() *Sealed { s := sealedNV(); s.Branches = make([]Digest, 1); return s },
		"another NV name":      func() *Sealed { s := sealedNV(); n := NameOf(nil); s.NVName = &n; return s },
		"object with password": func() *Sealed { s := sealedNV(); s.Public[5] |= 0x40; return s }, // userWithAuth
		"object to be copied":  func() *Sealed { s := sealedNV(); s.Public[7] &^= 0x02; return s },
		"public area cut":      func() *Sealed { s := sealedNV(); s.Public = s.Public[:len(s.Public)-1]; return s },
		"PCR with NV":          func() *Sealed { s := sealedPCR(t, 1); s.NVIndex = 0x01A48600; return s },
		"no branch":            func() *Sealed { s := sealedPCR(t, 1); s.Branches = nil; return s },
		"another branch":       func() *Sealed { s := sealedPCR(t, 1); s.Branches[0][0]++; return s },
		"without PCR 11":       func() *Sealed { s := sealedPCR(t, 1); s.PCRs = []int{12, 13}; return s },
		"PCR 8":                func() *Sealed { s := sealedPCR(t, 1); s.PCRs = []int{8, 11}; return s },
		"PCRs out of order":    func() *Sealed { s := sealedPCR(t, 1); s.PCRs = []int{12, 11}; return s },
	} {
		if b, err := s().Encode(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

func TestParseSealedRefuses(t *testing.T) {
	good, err := sealedNV().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":       "",
		"null":          "null",
		"not JSON":      "x",
		"a list":        "[]",
		"more after":    string(good) + "{}",
		"unknown field": strings.Replace(string(good), `"kind"`, `"extra":1,"kind"`, 1),
		"too long":      string(good) + strings.Repeat(" ", maxSealedJSON),
		"SHA-1 name":    strings.Replace(string(good), `"srk-name":"000b`, `"srk-name":"0004`, 1),
	} {
		if s, err := ParseSealed([]byte(text)); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

func FuzzParseSealed(f *testing.F) {
	for _, s := range []*Sealed{sealedNV(), sealedPCR(f, 1), sealedPCR(f, 8)} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSealed(b)
		if p, perr := ParseSealedPhrase(b); err == nil && perr == nil {
			t.Fatalf("%s is %+v and %+v", b, s, p)
		}
		if err != nil {
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		back, err := ParseSealed(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if twice, err := back.Encode(); err != nil || !bytes.Equal(twice, again) {
			t.Errorf("%s became %s, %v", again, twice, err)
		}
	})
}
