package release

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

func sample() *Release {
	sum := bytes.Repeat([]byte{7}, 32)
	return &Release{
		Format: Format, ImageID: "desktop", Arch: "x86_64", Version: 2, Epoch: 1,
		RootHash: sum, Salt: []byte{1}, ImageSize: 8192, SlotSize: 1 << 20, PCR11: sum, SourceDate: 1767225600,
		Files: []File{
			{Name: UKIFile, Size: 100, SHA256: sum, Authenticode: sum},
			{Name: BootManagerFile, Size: 100, SHA256: sum, Authenticode: sum},
			{Name: ImageFile, Size: 8192, SHA256: sum},
		},
	}
}

// published is the sample as an archive has it.
func published() *Release {
	r := sample()
	for i := range r.Files {
		r.Files[i].Packed = 90
	}
	image := r.Files[2]
	r.Files = append(r.Files[:2], File{Name: IndexFile, Size: 60, SHA256: image.SHA256, Packed: 97}, image)
	return r
}

func TestRoundTrip(t *testing.T) {
	text, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("Parse = %+v, %v", got, err)
	}
	if f, ok := got.File(ImageFile); !ok || f.Size != 8192 {
		t.Errorf("File(%s) = %+v, %v", ImageFile, f, ok)
	}
	if _, ok := got.File("other"); ok {
		t.Error("found a file that is not there")
	}
}

func TestPublished(t *testing.T) {
	text, err := published().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || !reflect.DeepEqual(got, published()) || !got.Published() {
		t.Errorf("Parse = %+v, %v", got, err)
	}
	if b := got.Build(); !reflect.DeepEqual(b, sample()) || b.Published() {
		t.Errorf("Build = %+v", b)
	}
	if !reflect.DeepEqual(got, published()) {
		t.Error("Build changed what it describes")
	}
	for want, change := range map[string]func(r *Release){
		"names 3 files":            func(r *Release) { r.Files = append(r.Files[:1], r.Files[2:]...) },
		"names 5 files":            func(r *Release) { r.Files = append(r.Files, r.Files[2]) },
		"want \"system.index\"":    func(r *Release) { r.Files[2], r.Files[3] = r.Files[3], r.Files[2] },
		"cannot take 0":            func(r *Release) { r.Files[3].Packed = 0 },
		"cannot take -1":           func(r *Release) { r.Files[0].Packed = -1 },
		"cannot take 8385":         func(r *Release) { r.Files[3].Packed = 8192 + 8192/64 + 65 },
		"cannot take 90":           func(r *Release) { *r = *sample(); r.Files[1].Packed = 90 },
		"system.index has":         func(r *Release) { r.Files[2].Size = 1 << 30 },
		"system.index: Authentico": func(r *Release) { r.Files[2].Authenticode = r.Files[2].SHA256 },
	} {
		r := published()
		change(r)
		if text, err := r.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Encode = %s, %v, want %q", text, err, want)
		}
	}
}

// FAULTS 30
func TestRefused(t *testing.T) {
	for want, change := range map[string]func(r *Release){
		"format 9":          func(r *Release) { r.Format = 9 },
		"pcr11":             func(r *Release) { r.PCR11 = nil },
		"before 1970":       func(r *Release) { r.SourceDate = -1 },
		"names 2 files":     func(r *Release) { r.Files = r.Files[:2] },
		"want \"uki.efi\"":  func(r *Release) { r.Files[0] = r.Files[1] },
		"want \"system":     func(r *Release) { r.Files[2].Name = "../system.erofs" },
		"0 bytes":           func(r *Release) { r.Files[0].Size = 0 },
		"bytes, want 1 to":  func(r *Release) { r.Files[1].Size = 1 << 40 },
		"SHA-256 has 31":    func(r *Release) { r.Files[2].SHA256 = r.Files[2].SHA256[1:] },
		"Authenticode":      func(r *Release) { r.Files[0].Authenticode = nil },
		"system.erofs: Aut": func(r *Release) { r.Files[2].Authenticode = r.Files[2].SHA256 },
		"image ID":          func(r *Release) { r.ImageID = "" },
	} {
		r := sample()
		change(r)
		if text, err := r.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Encode = %s, %v, want %q", text, err, want)
		}
	}
	if _, err := Parse(bytes.Repeat([]byte{' '}, MaxSize+1)); err == nil {
		t.Error("a file that is too large was parsed")
	}
	good, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	// Two readers would see two values.
	for _, more := range []string{`"epoch":1,`, `"EPOCH":1,`, `"files":[],`} {
		if _, err := Parse([]byte("{" + more + string(good[1:]))); err == nil || !strings.Contains(err.Error(), "comes twice") {
			t.Errorf("%s: %v", more, err)
		}
	}
}

// FAULTS 5, 6
func TestMatches(t *testing.T) {
	r := sample()
	c := func() *contract.Contract {
		return &contract.Contract{
			ImageID: r.ImageID, Arch: r.Arch, Version: r.Version, Epoch: r.Epoch,
			RootHash: r.RootHash, Salt: r.Salt, ImageSize: r.ImageSize, SlotSize: r.SlotSize,
		}
	}
	if err := r.Matches(c()); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(c *contract.Contract){
		"image ID":     func(c *contract.Contract) { c.ImageID = "server" },
		"architecture": func(c *contract.Contract) { c.Arch = "aarch64" },
		"version":      func(c *contract.Contract) { c.Version-- },
		"epoch":        func(c *contract.Contract) { c.Epoch-- },
		"root hash":    func(c *contract.Contract) { c.RootHash = make([]byte, 32) },
		"salt":         func(c *contract.Contract) { c.Salt = []byte{2} },
		"image size":   func(c *contract.Contract) { c.ImageSize += 4096 },
		"slot size":    func(c *contract.Contract) { c.SlotSize *= 2 },
	} {
		other := c()
		change(other)
		if err := r.Matches(other); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, r := range []*Release{sample(), published()} {
		good, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(good)
		f.Add([]byte(`{"epoch":1,` + string(good[1:])))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("parsed and not encodable: %v", err)
		}
		if back, err := Parse(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}
