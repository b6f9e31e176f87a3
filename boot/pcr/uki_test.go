package pcr_test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

const stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func payload() uki.Payload {
	return uki.Payload{
		OSRelease:    []byte("ID=test\nVERSION_ID=1\n"),
		Cmdline:      []byte("lockdown=integrity panic=10"),
		DeviceTree:   []byte("device tree"),
		HardwareIDs:  []byte("hardware identifiers"),
		Uname:        []byte("6.12.0-test"),
		Splash:       []byte("BM picture"),
		PCRPublicKey: []byte("-----BEGIN PUBLIC KEY-----\n"),
		Linux:        bytes.Repeat([]byte("kernel"), 1000),
		Initrd:       bytes.Repeat([]byte("initrd"), 12345),
		Microcode:    []byte("microcode"),
		PCRSignature: []byte("{}"),
	}
}

func image(t testing.TB, stub []byte, sections ...uki.Section) *uki.Image {
	t.Helper()
	built, err := uki.Build(stub, sections)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := uki.Parse(built)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func predict(t testing.TB, img *uki.Image) pcr.Digest {
	t.Helper()
	d, err := pcr.PredictUKI(img)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// measure asks systemd-measure for PCR 11 of the given sections, by phase.
func measure(t *testing.T, tree *testkit.Tree, img *uki.Image, names ...string) map[string]string {
	t.Helper()
	args := []string{"calculate", "--json=short", "--bank=sha256"}
	for _, name := range names {
		data, ok := img.Section(name)
		if !ok {
			t.Fatalf("no section %s", name)
		}
		args = append(args, "--"+name[1:]+"="+tree.Put(name[1:], data))
	}
	var out struct {
		SHA256 []struct{ Phase, Hash string } `json:"sha256"`
	}
	text := tree.Run("/usr/lib/systemd/systemd-measure", args...)
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	phases := map[string]string{}
	for _, s := range out.SHA256 {
		phases[s.Phase] = s.Hash
	}
	return phases
}

// systemd-measure is told which sections the stub of each version looks at,
// and must come out where PredictUKI, told the version alone, does.
func TestPredictEqualsSystemdMeasure(t *testing.T) {
	tree := testkit.Tools13(t)
	of252 := []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}
	of254 := append([]string{".uname", ".sbat"}, of252...)
	of256 := append([]string{".ucode"}, of254...)
	of257 := append([]string{".profile"}, of256...)
	// Not .hwids: systemd-measure 257 measures it under the name .dtbauto, the stub does not.
	sections := slices.DeleteFunc(payload().Sections(), func(s uki.Section) bool { return s.Name == ".hwids" })
	sections = append(sections, uki.Section{Name: ".profile", Data: []byte("ID=main\n")})
	tests := []struct {
		name  string
		stub  []byte
		judge []string
	}{
		{"252", ukitest.Stub("252.39-1~deb12u2"), of252},
		{"253", ukitest.Stub("253"), of252},
		{"254", ukitest.Stub("254.1"), of254},
		{"255", ukitest.Stub("255.1"), of254},
		{"256", ukitest.Stub("256~rc1"), of256},
		{"257", ukitest.Stub("257.9"), of257},
		{"260", ukitest.Stub("260"), of257},
		{"Debian 13", tree.Read(stubPath), of257},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			img := image(t, test.stub, sections...)
			want := measure(t, tree, img, test.judge...)
			initrd := pcr.Phases(predict(t, img), pcr.EnterInitrd)
			if initrd.String() != want["enter-initrd"] {
				t.Errorf("PCR 11 in the initramfs is %s, systemd-measure says %s", initrd, want["enter-initrd"])
			}
			ready := pcr.Phases(initrd, pcr.LeaveInitrd, "sysinit", "ready")
			if ready.String() != want["enter-initrd:leave-initrd:sysinit:ready"] {
				t.Errorf("PCR 11 at the end is %s, systemd-measure says %s", ready, want["enter-initrd:leave-initrd:sysinit:ready"])
			}
		})
	}
}

// The stub of Debian 12, where the tests run on one, really is a 252.
func TestHostStub(t *testing.T) {
	stub, err := os.ReadFile(stubPath)
	if err != nil {
		testkit.Skip(t, "systemd-boot-efi is not installed: run `make tools`")
	}
	p := payload()
	p.DeviceTree, p.HardwareIDs, p.Splash, p.PCRSignature = nil, nil, nil, nil // 252 has room for seven more
	img := image(t, stub, p.Sections()...)
	mark, err := img.Stub()
	if err != nil {
		t.Fatal(err)
	}
	p.SBAT, _ = img.Section(".sbat")
	twin := image(t, ukitest.Stub(mark.Version), p.Sections()...)
	if got, want := predict(t, img), predict(t, twin); got != want {
		t.Errorf("PCR 11 is %s with the real stub, %s with a made-up one of that version", got, want)
	}
}

func TestPredictFollowsEverySection(t *testing.T) {
	base := predict(t, image(t, ukitest.Stub("257.1"), payload().Sections()...))
	for i, s := range payload().Sections() {
		sections := payload().Sections()
		sections[i].Data = append(bytes.Clone(s.Data), 'x')
		changed := predict(t, image(t, ukitest.Stub("257.1"), sections...)) != base
		if want := s.Name != ".pcrsig"; changed != want {
			t.Errorf("PCR 11 changes with %s: %v, want %v", s.Name, changed, want)
		}
	}
}

func TestPredictRefuses(t *testing.T) {
	linux := uki.Section{Name: ".linux", Data: []byte("k")}
	tests := []struct {
		name     string
		stub     []byte
		sections []uki.Section
		want     string
	}{
		{"old stub", ukitest.Stub("251.4"), []uki.Section{linux}, "want systemd-stub 252 or newer"},
		{"boot manager", ukitest.Image(ukitest.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 257 ####")}), []uki.Section{linux}, "starts with systemd-boot"},
		{"no mark", ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("x")}), []uki.Section{linux}, "no systemd mark"},
		{"no kernel", ukitest.Stub("257"), []uki.Section{{Name: ".osrel", Data: []byte("x")}}, "no section .linux"},
		{"up to the hardware", ukitest.Stub("257"), []uki.Section{linux, {Name: ".dtbauto", Data: []byte("x")}}, "whose hardware it matches"},
		{"up to the hardware, 258", ukitest.Stub("258"), []uki.Section{linux, {Name: ".efifw", Data: []byte("x")}}, "whose hardware it matches"},
		{"prefix", ukitest.Stub("256"), []uki.Section{linux, {Name: ".dtbauto", Data: []byte("x")}}, ".dtbauto is taken for .dtb"},
		{"section of the future", ukitest.Stub("263"), []uki.Section{linux, {Name: ".new", Data: []byte("x")}}, ".new may be measured"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := pcr.PredictUKI(image(t, test.stub, test.sections...))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := pcr.PredictUKI(image(t, ukitest.Stub("257"), linux, uki.Section{Name: ".new", Data: []byte("x")})); err != nil {
		t.Errorf("a section that stub 257 does not know: %v", err)
	}
}

func TestDigestText(t *testing.T) {
	d := pcr.Digest{}.Extend(pcr.Digest{1})
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var again pcr.Digest
	if err := json.Unmarshal(text, &again); err != nil || again != d {
		t.Errorf("%s came back as %s: %v", text, again, err)
	}
	for _, bad := range []string{`"12"`, `"` + strings.Repeat("zz", 32) + `"`, `""`} {
		if err := json.Unmarshal([]byte(bad), &again); err == nil {
			t.Errorf("%s was taken for a digest", bad)
		}
	}
}
