package release

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

// sampleExtension is an extension of the sample, as the UKI lists it.
func sampleExtension() (*contract.Contract, *contract.Extension) {
	r := sample()
	c := &contract.Contract{ImageID: r.ImageID, Arch: r.Arch, Version: r.Version, Epoch: r.Epoch, SourceDate: r.SourceDate}
	return c, &contract.Extension{Name: "vpn", RootHash: bytes.Repeat([]byte{9}, 32), Salt: []byte{2}, ImageSize: 8192}
}

func describeExtension(t testing.TB) *Release {
	t.Helper()
	c, e := sampleExtension()
	r, err := OfExtension(c, e, bytes.Repeat([]byte{3}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// publishedExtension is its description as an archive has it.
func publishedExtension(t testing.TB) *Release {
	r := describeExtension(t)
	r.Files[0].Packed = 90
	r.Files = append([]File{{Name: IndexFile, Size: 60, SHA256: r.RootHash, Packed: 97}}, r.Files...)
	return r
}

func TestExtensionRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []*Release{describeExtension(t), publishedExtension(t)} {
		text, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("slot_size")) || bytes.Contains(text, []byte("pcr11")) {
			t.Errorf("what only a release has is in %s", text)
		}
		got, err := ParseExtension(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseExtension = %+v, %v", got, err)
		}
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), "system extension vpn") {
			t.Errorf("an extension was taken for a release: %v", err)
		}
	}
	if b := publishedExtension(t).Build(); !reflect.DeepEqual(b, describeExtension(t)) {
		t.Errorf("Build = %+v", b)
	}
	text, err := published().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseExtension(text); err == nil || !strings.Contains(err.Error(), "describes a release") {
		t.Errorf("a release was taken for an extension: %v", err)
	}
}

// FAULTS 30
func TestExtensionRefused(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(r *Release){
		"format 9":                 func(r *Release) { r.Format = 9 },
		"want a name of":           func(r *Release) { r.Extension = "../vpn" },
		"root hash has 31":         func(r *Release) { r.RootHash = r.RootHash[1:] },
		"want \"other.raw\"":       func(r *Release) { r.Extension = "other" },
		"which is no release":      func(r *Release) { r.Version = 0 },
		"before 1970":              func(r *Release) { r.SourceDate = -1 },
		"slot size":                func(r *Release) { r.SlotSize = 1 << 20 },
		"a PCR 11":                 func(r *Release) { r.PCR11 = r.RootHash },
		"or revocations":           func(r *Release) { r.Revocations = []Revocations{{Type: "sha256"}} },
		"names 3 files":            func(r *Release) { r.Files = append(r.Files, r.Files[0]) },
		"want \"system.index\"":    func(r *Release) { r.Files[0], r.Files[1] = r.Files[1], r.Files[0] },
		"vpn.raw has 8192 bytes":   func(r *Release) { r.Files[1].Size = 8192 },
		"not a positive multiple":  func(r *Release) { r.ImageSize = 4097 },
		"system.index has":         func(r *Release) { r.Files[0].Size = 1 << 20 },
		"cannot take 0":            func(r *Release) { r.Files[1].Packed = 0 },
		"vpn.raw: Authenticode":    func(r *Release) { r.Files[1].Authenticode = r.RootHash },
		"salt has 0 bytes":         func(r *Release) { r.Salt = nil },
		"vpn.raw: SHA-256 has 31 ": func(r *Release) { r.Files[1].SHA256 = r.RootHash[1:] },
	} {
		r := publishedExtension(t)
		change(r)
		if text, err := r.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Encode = %s, %v, want %q", text, err, want)
		}
	}
}

// FAULTS 111
func TestMatchesExtension(t *testing.T) {
	t.Parallel()
	r := publishedExtension(t)
	if c, e := sampleExtension(); r.MatchesExtension(c, e) != nil {
		t.Error(r.MatchesExtension(c, e))
	}
	for want, change := range map[string]func(c *contract.Contract, e *contract.Extension){
		"name is":         func(_ *contract.Contract, e *contract.Extension) { e.Name = "other" },
		"image ID is":     func(c *contract.Contract, _ *contract.Extension) { c.ImageID = "server" },
		"architecture is": func(c *contract.Contract, _ *contract.Extension) { c.Arch = "aarch64" },
		"version is":      func(c *contract.Contract, _ *contract.Extension) { c.Version++ },
		"epoch is":        func(c *contract.Contract, _ *contract.Extension) { c.Epoch++ },
		"root hash is":    func(_ *contract.Contract, e *contract.Extension) { e.RootHash = make([]byte, 32) },
		"salt is":         func(_ *contract.Contract, e *contract.Extension) { e.Salt = []byte{1} },
		"image size is":   func(_ *contract.Contract, e *contract.Extension) { e.ImageSize += 4096 },
	} {
		c, e := sampleExtension()
		change(c, e)
		if err := r.MatchesExtension(c, e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if c, e := sampleExtension(); published().MatchesExtension(c, e) == nil {
		t.Error("a release matches an extension")
	}
}

// FAULTS 30
func FuzzParseExtension(f *testing.F) {
	good, err := publishedExtension(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseExtension(text)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("parsed and not encodable: %v", err)
		}
		if back, err := ParseExtension(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}
