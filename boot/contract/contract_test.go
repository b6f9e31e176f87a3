package contract

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
)

func sample() *Contract {
	return &Contract{
		Format: Format, ImageID: "desktop", Arch: "x86_64", Version: 2025091101, Epoch: 3, SourceDate: 1767225600,
		RootHash: bytes.Repeat([]byte{0xab}, 32), Salt: []byte{1, 2, 3}, ImageSize: 8192, SlotSize: 1 << 30,
		ReleaseKey: []byte("a key"), SecureBoot: Required, TPM: Optional, VendorKeys: VendorAuto, RootFileSystem: "ext4",
		WatchdogSeconds: 120,
	}
}

func TestRoundTrip(t *testing.T) {
	c := sample()
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("got %+v, want %+v", got, c)
	}
	if p := got.VerityParams(); p.DataBlocks != 2 || got.Root() != verity.Root(c.RootHash) || !bytes.Equal(p.UUID[:], c.RootHash[16:]) {
		t.Errorf("verity parameters %+v", p)
	}
	if !strings.Contains(string(text), `"version": "2025091101"`) {
		t.Errorf("a version is written as a string, so that no reader rounds it: %s", text)
	}
}

// FAULTS 3
func TestVersions(t *testing.T) {
	for _, s := range []string{"1", "2025091101", "9223372036854775807"} {
		if v, err := ParseVersion(s); err != nil || v.String() != s {
			t.Errorf("ParseVersion(%q) = %v, %v", s, v, err)
		}
	}
	for _, s := range []string{"", "0", "01", "-1", "+1", "1.0", "1a", " 1", "1 ", "0x1", "1e3", "1_0", "9223372036854775808", "18446744073709551616"} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", s, v)
		}
	}
}

func TestRefused(t *testing.T) {
	for want, change := range map[string]func(c *Contract){
		"format 2":                      func(c *Contract) { c.Format = 2 },
		"image ID":                      func(c *Contract) { c.ImageID = "../x" },
		"image ID \"a_b\"":              func(c *Contract) { c.ImageID = "a_b" },
		"architecture":                  func(c *Contract) { c.Arch = "x86/64" },
		"version 0":                     func(c *Contract) { c.Version = 0 },
		"version 9223372036854775808":   func(c *Contract) { c.Version = MaxVersion + 1 },
		"source date":                   func(c *Contract) { c.SourceDate = -1 },
		"root hash has 31":              func(c *Contract) { c.RootHash = c.RootHash[1:] },
		"salt has 0":                    func(c *Contract) { c.Salt = nil },
		"salt has 257":                  func(c *Contract) { c.Salt = make([]byte, 257) },
		"image size 4097":               func(c *Contract) { c.ImageSize = 4097 },
		"image size -4096":              func(c *Contract) { c.ImageSize = -4096 },
		"slot size 1":                   func(c *Contract) { c.SlotSize = 1 },
		"slot size 1152921504606846976": func(c *Contract) { c.SlotSize = 1 << 60 },
		"does not fit":                  func(c *Contract) { c.ImageSize = c.SlotSize + 4096 },
		"secure_boot":                   func(c *Contract) { c.SecureBoot = "" },
		"tpm is":                        func(c *Contract) { c.TPM = "maybe" },
		"vendor_keys":                   func(c *Contract) { c.VendorKeys = "all" },
		"watchdog_seconds":              func(c *Contract) { c.WatchdogSeconds = 3601 },
		"root_file_system":              func(c *Contract) { c.RootFileSystem = "vfat" },
	} {
		c := sample()
		change(c)
		if text, err := c.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Encode = %s, %v, want %q", text, err, want)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text); err == nil {
			t.Errorf("%s: parsed", want)
		}
	}
}

func TestParseRefused(t *testing.T) {
	good, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":         "",
		"unknown field": strings.Replace(string(good), `"epoch"`, `"extra": 1, "epoch"`, 1),
		"two values":    string(good) + "{}",
		"truncated":     string(good[:len(good)/2]),
		"too large":     strings.Repeat(" ", MaxSize) + string(good),
		"a number":      strings.Replace(string(good), `"2025091101"`, `2025091101`, 1),
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

func TestInitrd(t *testing.T) {
	c := sample()
	archive, err := Archive(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(archive)%512 != 0 {
		t.Errorf("the archive has %d bytes, and another is to follow", len(archive))
	}
	got, err := FromInitrd(append(archive, "whatever follows"...))
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("FromInitrd = %+v, %v", got, err)
	}
	again, err := Archive(c)
	if err != nil || !bytes.Equal(archive, again) {
		t.Error("the same contract gives another archive")
	}
}

// An initramfs says what its initagent can read, wherever the contract happens to
// end; one of an earlier release says nothing, and is read as it was.
func TestAbilities(t *testing.T) { // FAULTS 94
	for size := range 600 {
		c := sample()
		c.ReleaseKey = make([]byte, 3*size)
		now, err := Archive(c)
		if err != nil {
			t.Fatal(err)
		}
		old, err := ArchiveWith(c, before())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(now, old) || len(now) == len(old) {
			t.Fatalf("size %d: an earlier initagent would not find the contract", size)
		}
		for _, rest := range []string{"", "\x1f\x8b compressed", "070701"} {
			if got := AbilitiesFromInitrd(append(bytes.Clone(now), rest...)); got != Own() {
				t.Fatalf("size %d, then %q: %+v, want %+v", size, rest, got, Own())
			}
			if got := AbilitiesFromInitrd(append(bytes.Clone(old), rest...)); got != before() {
				t.Fatalf("size %d of an earlier release, then %q: %+v", size, rest, got)
			}
		}
		for _, cut := range []int{0, 1, 100, len(old) - 1, len(old), len(old) + 100} {
			if got := AbilitiesFromInitrd(now[:cut]); got != before() {
				t.Fatalf("size %d, cut at %d: %+v", size, cut, got)
			}
		}
	}
	newer, err := archive(AbilitiesPath, []byte(`{"policy_record":7,"whatever":[1]}`))
	if err != nil {
		t.Fatal(err)
	}
	first, err := ArchiveWith(sample(), before())
	if err != nil {
		t.Fatal(err)
	}
	if got := AbilitiesFromInitrd(append(first, newer...)); got.PolicyRecord != 7 {
		t.Errorf("a newer release: %+v", got)
	}
}

// The choices come third, wherever the others end; what reads the two before finds them as it did.
func TestChoices(t *testing.T) {
	for size := range 600 {
		c := sample()
		c.ReleaseKey = make([]byte, 3*size)
		two, err := Archive(c)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("x"), 1+size)
		three, err := WithChoices(bytes.Clone(two), want)
		if err != nil {
			t.Fatal(err)
		}
		for _, rest := range []string{"", "\x1f\x8b compressed", "070701"} {
			initrd := append(bytes.Clone(three), rest...)
			if got := ChoicesFromInitrd(initrd, 600); !bytes.Equal(got, want) {
				t.Fatalf("size %d, then %q: %q", size, rest, got)
			}
			if got, err := FromInitrd(initrd); err != nil || AbilitiesFromInitrd(initrd) != Own() || got.ImageID != c.ImageID {
				t.Fatalf("size %d: %+v, %v", size, got, err)
			}
			if got := ChoicesFromInitrd(append(bytes.Clone(two), rest...), 600); got != nil {
				t.Fatalf("size %d without choices, then %q: %q", size, rest, got)
			}
		}
		for _, cut := range []int{0, 1, 100, len(two) - 1, len(two), len(two) + 100} {
			if got := ChoicesFromInitrd(three[:cut], 600); got != nil {
				t.Fatalf("size %d, cut at %d: %q", size, cut, got)
			}
		}
		if got := ChoicesFromInitrd(three, int64(size)); got != nil {
			t.Fatalf("more than the limit: %q", got)
		}
	}
}

// What a UKI says of its ESP is none that a disk cannot have, and nothing where it is as
// ever.
func TestAbilitiesESP(t *testing.T) {
	if a := Own().WithESP(layout.ESPSize, layout.ESPSize); a != Own() || a.ESP() != layout.ESPSize || a.SmallestESP() != layout.ESPSize {
		t.Errorf("%+v", a)
	}
	for _, c := range []struct{ size, least, wantSize, wantLeast int64 }{
		{1 << 30, 512 << 20, 1 << 30, 512 << 20},
		{1 << 30, 1 << 30, 1 << 30, 1 << 30},
		{512 << 20, 2 << 30, 512 << 20, 512 << 20},
		{16 << 30, 1 << 30, 16 << 30, 1 << 30},
		{17 << 30, 512 << 20, 512 << 20, 512 << 20}, // counts as a release that says nothing
		{1<<30 + 1, 1 << 30, 512 << 20, 512 << 20},
		{1 << 30, 1, 512 << 20, 512 << 20},
		{1 << 30, -1 << 30, 512 << 20, 512 << 20},
	} {
		initrd, err := ArchiveWith(sample(), Own().WithESP(c.size, c.least))
		if err != nil {
			t.Fatal(err)
		}
		if a := AbilitiesFromInitrd(initrd); a.ESP() != c.wantSize || a.SmallestESP() != c.wantLeast {
			t.Errorf("%d and %d: read back are %d and %d", c.size, c.least, a.ESP(), a.SmallestESP())
		}
	}
}

func TestInitrdRefused(t *testing.T) {
	write := func(records ...cpio.Record) []byte {
		var out bytes.Buffer
		w := cpio.Newc.Writer(&out)
		if err := cpio.WriteRecords(w, records); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	text, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, initrd := range map[string][]byte{
		"empty":      nil,
		"no archive": []byte("(\xb5/\xfd compressed"),
		"other file": write(cpio.StaticFile("init", "x", 0o755), cpio.StaticFile(Path, string(text), 0o444)),
		"too large":  write(cpio.StaticFile(Path, strings.Repeat(" ", MaxSize+1), 0o444)),
		"truncated":  write(cpio.StaticFile(Path, string(text), 0o444))[:300],
		"no JSON":    write(cpio.StaticFile(Path, "hello", 0o444)),
	} {
		if c, err := FromInitrd(initrd); err == nil {
			t.Errorf("%s: found %+v", name, c)
		}
	}
	// One of a directory, as ours starts, and then 4 GiB of a name.
	long := write(cpio.Directory("halogen", 0o755), cpio.StaticFile(Path, string(text), 0o444))
	second := bytes.LastIndex(long, []byte("070701"))
	copy(long[second+6+11*8:], "FFFFFFFF")
	if _, err := FromInitrd(long); err == nil || !strings.Contains(err.Error(), "FFFFFFFF") {
		t.Errorf("a name of 4 GiB: %v", err)
	}
}

// ambiguous are fields that, before the others, make two readers see two values.
var ambiguous = []string{`"epoch":1,`, `"Epoch":1,`, `"secure_boot":"optional",`, `"\u0045poch":1,`}

func TestParseRefusesTwoReadings(t *testing.T) {
	good, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range ambiguous {
		if _, err := Parse([]byte("{" + more + string(good[1:]))); err == nil || !strings.Contains(err.Error(), "comes twice") {
			t.Errorf("%s: %v", more, err)
		}
	}
	other := strings.Replace(string(good), `"tpm"`, `"TPM"`, 1)
	if _, err := Parse([]byte(other)); err == nil || !strings.Contains(err.Error(), `"TPM" is spelt "tpm"`) {
		t.Errorf("TPM for tpm: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	good, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	for _, more := range ambiguous {
		f.Add([]byte("{" + more + string(good[1:])))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("parsed and not encodable: %v", err)
		}
		if back, err := Parse(again); err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("%+v became %+v, %v", c, back, err)
		}
	})
}

func FuzzFromInitrd(f *testing.F) {
	archive, err := Archive(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive)
	three, err := WithChoices(bytes.Clone(archive), []byte("{}"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(three)
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, initrd []byte) {
		if text := ChoicesFromInitrd(initrd, 1000); len(text) > 1000 {
			t.Fatalf("%d bytes", len(text))
		}
		if a := AbilitiesFromInitrd(initrd); a.PolicyRecord < 1 {
			t.Fatalf("accepted %+v", a)
		}
		if c, err := FromInitrd(initrd); err == nil && c.Validate() != nil {
			t.Fatalf("accepted %+v", c)
		}
	})
}
