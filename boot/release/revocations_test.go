package release

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
)

var vendor = gpt.MustGUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")

func hash(owner gpt.GUID, b byte) secureboot.Entry {
	return secureboot.Hash(owner, [32]byte(bytes.Repeat([]byte{b}, 32)))
}

func TestRevocations(t *testing.T) {
	r := sample()
	want := secureboot.Database{hash(vendor, 1), hash(vendor, 2), hash(gpt.GUID{}, 3)}
	if err := r.SetRevocations(want); err != nil {
		t.Fatal(err)
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || !reflect.DeepEqual(got, r) || !got.DBX().Same(want) || len(got.Revocations) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if got.Build(); len(got.Build().Revocations) != 2 {
		t.Error("the description of the build has none")
	}
	// Machines that do not know the member take a release without entries, as before.
	plain, err := sample().Encode()
	if err != nil || bytes.Contains(plain, []byte("revocations")) {
		t.Errorf("without entries: %s, %v", plain, err)
	}
}

func TestRevocationsThatAreRefused(t *testing.T) {
	digest := contract.Hex(bytes.Repeat([]byte{9}, 32))
	many := make([]contract.Hex, 1100)
	for i := range many {
		many[i] = append(contract.Hex{byte(i), byte(i >> 8)}, digest[2:]...)
	}
	for name, c := range map[string]struct {
		list []Revocations
		want string
	}{
		"type":       {[]Revocations{{Type: "sha1", Entries: []contract.Hex{digest[:20]}}}, `of type "sha1", want sha256 or x509`},
		"owner":      {[]Revocations{{Type: "sha256", Owner: strings.ToUpper(vendor.String()), Entries: []contract.Hex{digest}}}, "want a GUID in small letters"},
		"zero owner": {[]Revocations{{Type: "sha256", Owner: gpt.GUID{}.String(), Entries: []contract.Hex{digest}}}, "want a GUID in small letters"},
		"none":       {[]Revocations{{Type: "sha256"}}, "without content, or none"},
		"empty":      {[]Revocations{{Type: "x509", Entries: []contract.Hex{{}}}}, "without content, or none"},
		"length":     {[]Revocations{{Type: "sha256", Entries: []contract.Hex{digest[:31]}}}, "hash has 31 bytes, want 32"},
		"twice":      {[]Revocations{{Type: "sha256", Entries: []contract.Hex{digest}}, {Type: "sha256", Owner: vendor.String(), Entries: []contract.Hex{digest}}}, "is there twice"},
		"no cert":    {[]Revocations{{Type: "x509", Entries: []contract.Hex{digest}}}, "cannot be read"},
		"too many":   {[]Revocations{{Type: "sha256", Entries: many}}, "at most 49152 are taken"},
		"its own":    {[]Revocations{{Type: "sha256", Entries: []contract.Hex{sample().Files[0].Authenticode}}}, "the hash of uki.efi, which the release itself brings"},
	} {
		r := sample()
		r.Revocations = c.list
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := Parse(text)
		if err == nil {
			err = parsed.CheckRevocations() // machines take the release, and judge each entry
			if slices.Contains([]string{"owner", "zero owner", "none", "empty"}, name) {
				t.Errorf("%s: a machine takes it", name)
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

// What a later release brings keeps no machine from it.
func TestRevocationsOfLater(t *testing.T) {
	r := sample()
	many := make([]contract.Hex, 3000)
	for i := range many {
		many[i] = append(contract.Hex{byte(i), byte(i >> 8)}, bytes.Repeat([]byte{9}, 30)...)
	}
	r.Revocations = []Revocations{{Type: "x509-sha384", Entries: []contract.Hex{{1}}}, {Type: "sha256", Entries: many}}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || len(got.DBX()) != len(many) {
		t.Errorf("%v", err)
	}
}
