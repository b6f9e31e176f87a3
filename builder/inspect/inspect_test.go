package inspect

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

func testContract() *contract.Contract {
	return &contract.Contract{
		Format: contract.Format, ImageID: "test-os", Arch: "x86_64", Version: 7, Epoch: 2,
		RootHash: bytes.Repeat([]byte{0xab}, 32), Salt: []byte("salt"), ImageSize: 4096, SlotSize: layout.Align,
		SecureBoot: contract.Required, TPM: contract.Optional, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
}

func testUKI(t testing.TB) []byte {
	t.Helper()
	initrd, err := contract.Archive(testContract())
	if err != nil {
		t.Fatal(err)
	}
	image, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\nIMAGE_VERSION=7\n"), Cmdline: []byte("quiet"), Uname: []byte("6.12.1"), Linux: []byte("MZ kernel"), Initrd: initrd,
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func write(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestUKI(t *testing.T) {
	image := testUKI(t)
	r, err := File(write(t, image))
	if err != nil {
		t.Fatal(err)
	}
	e := r.EFI
	if e == nil || e.Cmdline != "quiet" || e.Uname != "6.12.1" || e.Program != "systemd-stub" || e.Contract == nil || e.Contract.Epoch != 2 || len(e.Signatures) != 0 {
		t.Fatalf("%+v", e)
	}
	if e.PCR11.EnterInitrd != pcr.Phases(e.PCR11.Stub, "enter-initrd") || e.PCR11.LeaveInitrd == e.PCR11.EnterInitrd {
		t.Errorf("PCR 11 %+v", e.PCR11)
	}
	var text bytes.Buffer
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), e.PCR11.EnterInitrd.String()) {
		t.Errorf("%s, %v", &text, err)
	}
}

// systemd-measure and ukify of the stub's own release are the judges.
func TestOthersAgreeOnPCR11(t *testing.T) {
	tree := testkit.Tools13(t)
	image := testUKI(t)
	r, err := File(write(t, image))
	if err != nil {
		t.Fatal(err)
	}
	img, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"calculate", "--bank=sha256", "--phase=", "--phase=enter-initrd"}
	for _, s := range img.Sections() {
		switch s.Name {
		case ".osrel", ".cmdline", ".uname", ".linux", ".initrd", ".sbat":
			args = append(args, "--"+s.Name[1:]+"="+tree.Put(s.Name[1:], s.Data))
		}
	}
	said := string(tree.Run("/usr/lib/systemd/systemd-measure", args...))
	for _, want := range []string{r.EFI.PCR11.Stub.String(), r.EFI.PCR11.EnterInitrd.String()} {
		if !strings.Contains(said, want) {
			t.Errorf("systemd-measure says nothing of %s:\n%s", want, said)
		}
	}
	said = string(tree.Run("ukify", "inspect", tree.Put("uki.efi", image)))
	for _, s := range r.EFI.Sections {
		if s.Name == ".linux" || s.Name == ".initrd" || s.Name == ".cmdline" {
			text, _ := s.SHA256.MarshalText()
			if !strings.Contains(said, string(text)) {
				t.Errorf("ukify inspect says nothing of %s %s:\n%s", s.Name, text, said)
			}
		}
	}
}

func TestSignedUKI(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test db"}, NotBefore: now, NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	image := testUKI(t)
	unsigned, err := File(write(t, image))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := authenticode.Sign(image, key, cert, now)
	if err != nil {
		t.Fatal(err)
	}
	r, err := File(write(t, signed))
	if err != nil {
		t.Fatal(err)
	}
	if s := r.EFI.Signatures; len(s) != 1 || len(s[0].Certificates) != 1 || s[0].Certificates[0] != "CN=Test db" {
		t.Errorf("signatures %+v", s)
	}
	if !bytes.Equal(r.EFI.Authenticode, unsigned.EFI.Authenticode) || r.EFI.PCR11.Stub != unsigned.EFI.PCR11.Stub || bytes.Equal(r.EFI.SHA256, unsigned.EFI.SHA256) {
		t.Error("signing changed what it must not, or did not change the file")
	}
}

// disk makes a disk with an ESP and two partitions, one of which the UKI names.
func disk(t testing.TB) string {
	t.Helper()
	const size, espSize = 40 << 20, 36 << 20
	c := testContract()
	table := &gpt.Table{Disk: gpt.MustGUID("00112233-4455-6677-8899-aabbccddeeff"), SectorSize: 512, Sectors: size / 512, Partitions: []gpt.Partition{
		{Number: 1, Type: layout.TypeESP, UUID: gpt.MustGUID("11111111-4455-6677-8899-aabbccddeeff"), First: 2048, Last: 2048 + espSize/512 - 1, Label: "esp"},
		{Number: 2, Type: layout.TypeRoot, UUID: layout.SystemUUID(c.Root()), First: 2048 + espSize/512, Last: 2048 + espSize/512 + 2047, Label: "system-a"},
		{Number: 4, Type: layout.TypeRoot, UUID: gpt.MustGUID("22222222-4455-6677-8899-aabbccddeeff"), First: 2048 + espSize/512 + 2048, Last: 2048 + espSize/512 + 3000, Label: "system-b"},
	}}
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	file := func(path string, content []byte) fat.File {
		return fat.File{Path: path, Size: int64(len(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
	}
	err = errors.Join(f.Truncate(size), table.Write(f), fat.Format(io.NewOffsetWriter(f, 1<<20), espSize, fat.Options{SectorSize: 512, Zeroed: true}, []fat.File{
		file("EFI/Linux/test-os_7.efi", testUKI(t)), file("EFI/Linux/broken.efi", []byte("MZ")), file("loader/loader.conf", []byte("timeout 0\n")),
	}), f.Close())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDisk(t *testing.T) {
	r, err := File(disk(t))
	if err != nil {
		t.Fatal(err)
	}
	d := r.Disk
	if d == nil || len(d.Partitions) != 3 || d.Table != "both copies are good" || len(d.ESP) != 3 {
		t.Fatalf("%+v", d)
	}
	byName := map[string]ESPFile{}
	for _, f := range d.ESP {
		byName[f.Path] = f
	}
	if f := byName["EFI/Linux/test-os_7.efi"]; f.Version != 7 || f.Partition != 2 || f.Fault != "" {
		t.Errorf("the UKI is described as %+v", f)
	}
	if f := byName["EFI/Linux/broken.efi"]; f.Fault == "" || f.Partition != 0 {
		t.Errorf("a broken UKI is described as %+v", f)
	}
	var text bytes.Buffer
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), "version 7, for partition 2") {
		t.Errorf("%s, %v", &text, err)
	}
}

// FAULTS 41
func TestDamagedDisk(t *testing.T) {
	whole, err := os.ReadFile(disk(t))
	if err != nil {
		t.Fatal(err)
	}
	damage := func(offsets ...int) string {
		b := bytes.Clone(whole)
		for _, at := range offsets {
			b[at] ^= 1
		}
		return write(t, b)
	}
	primary, alternate := 512+16, len(whole)-512+16 // the checksum of the header
	r, err := File(damage(primary))
	if err != nil || len(r.Disk.Partitions) != 3 || r.Disk.Table == "both copies are good" {
		t.Errorf("a bad primary gives %+v, %v", r, err)
	}
	r, err = File(damage(alternate))
	if err != nil || len(r.Disk.Partitions) != 3 || r.Disk.Table == "both copies are good" {
		t.Errorf("a bad alternate gives %+v, %v", r, err)
	}
	if _, err := File(damage(primary, alternate)); err == nil {
		t.Error("two bad copies were taken")
	}
	if _, err := File(write(t, whole[:3<<20])); err == nil {
		t.Error("a truncated disk was taken")
	}
}

func TestFilesThatAreNothing(t *testing.T) {
	image := testUKI(t)
	for name, content := range map[string][]byte{
		"empty":          nil,
		"text":           []byte("hello"),
		"zeros":          make([]byte, 100_000),
		"JSON":           []byte(`{"format":1}`),
		"truncated JSON": []byte(`{"format":1,`),
		"truncated UKI":  image[:len(image)/2],
		"header alone":   []byte("MZ"),
	} {
		if r, err := File(write(t, content)); err == nil {
			t.Errorf("%s is taken for %+v", name, r)
		}
	}
	if _, err := File(write(t, []byte("hello"))); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v, want %v", err, ErrUnknown)
	}
	damaged := bytes.Replace(image, []byte(`"epoch": 2`), []byte(`"epoch": x`), 1)
	if _, err := File(write(t, damaged)); err == nil || !strings.Contains(err.Error(), "boot contract") {
		t.Errorf("a damaged boot contract: error %v", err)
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add(testUKI(f))
	f.Add([]byte("MZ"))
	f.Add([]byte(`{"format":1}`))
	f.Add(append(make([]byte, 512), "EFI PART"...))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := describe(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		if err := r.Text(io.Discard); err != nil {
			t.Error(err)
		}
	})
}

func FuzzSubjects(f *testing.F) {
	f.Add([]byte{0x30, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02})
	f.Fuzz(func(t *testing.T, der []byte) {
		if names := subjects(der); len(names) > len(der) {
			t.Errorf("%d certificates in %d bytes", len(names), len(der))
		}
	})
}
