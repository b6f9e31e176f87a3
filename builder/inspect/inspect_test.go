package inspect

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
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
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
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
	if e.ModuleKey != nil {
		t.Errorf("it has no certificate for modules, and shows %+v", e.ModuleKey)
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

// The processors that a UKI has microcode for are named where Linux finds it, and what has
// no effect is said.
func TestMicrocode(t *testing.T) {
	s := new(microcode.Set)
	intel := microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf8}
	for _, data := range [][]byte{microcodetest.Intel(intel), microcodetest.AMD(microcode.Processor{Signature: 0xa20f12, Revision: 0xa201210})} {
		if err := s.Add(data); err != nil {
			t.Fatal(err)
		}
	}
	archive, err := s.Archive()
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(archive)
	damaged[len(damaged)-200]++
	for _, c := range []struct {
		stub           string
		ucode, initrd  []byte
		want, mustLack string
	}{
		{"257.13-1", archive, nil, "19-21-02", "fault"},
		{"257.13-1", nil, archive, "06-9e-0a", "fault"},
		{"252.39-1~deb12u2", nil, archive, "06-9e-0a", "fault"},
		{"252.39-1~deb12u2", archive, nil, "the section .ucode has no effect: systemd-stub 252.39-1~deb12u2 passes over it, 256 is the first that does not", "06-9e-0a"},
		{"257.13-1", damaged, nil, "GenuineIntel.bin is not microcode of Intel's: update 1, at byte 0: the checksum", "06-9e-0a"},
		{"257.13-1", nil, nil, "none", "06-9e-0a"},
	} {
		image, err := uki.Build(ukitest.Stub(c.stub), uki.Payload{Linux: []byte("MZ kernel"), Initrd: append(c.initrd, "compressed"...), Microcode: c.ucode}.Sections())
		if err != nil {
			t.Fatal(err)
		}
		r, err := File(write(t, image))
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := r.Text(&text); err != nil || !strings.Contains(text.String(), c.want) || strings.Contains(text.String(), c.mustLack) {
			t.Errorf("stub %s: want %q, and not %q, %v:\n%s", c.stub, c.want, c.mustLack, err, &text)
		}
		if len(r.EFI.Microcode) == 2 && r.EFI.Microcode[1].Processors[0] != (Processor{"06-9e-0a", "0xf8", "0x22"}) {
			t.Errorf("%+v", r.EFI.Microcode)
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

// FAULTS 112 (B11)
func TestDisksOfOthers(t *testing.T) {
	content, err := os.ReadFile(disk(t))
	if err != nil {
		t.Fatal(err)
	}
	clear(content[1<<20 : 1<<20+4096]) // the start of the ESP
	r, text := shown(t, content)
	if len(r.Disk.Partitions) != 3 || r.Disk.Partitions[0].Fault == "" {
		t.Errorf("a disk whose first partition is not FAT is described as %+v", r.Disk)
	}
	says(t, "no FAT", text, "system-b", "fault:")

	le := binary.LittleEndian
	mbr := make([]byte, 1<<20)
	mbr[446], mbr[446+4] = 0x80, 0x0c
	le.PutUint32(mbr[446+8:], 63)
	le.PutUint32(mbr[446+12:], 1000)
	mbr[462+4] = 0x83
	le.PutUint32(mbr[462+8:], 1063)
	le.PutUint32(mbr[462+12:], 4_000_000)
	mbr[510], mbr[511] = 0x55, 0xaa
	r, text = shown(t, mbr)
	if len(r.Disk.Partitions) != 2 || r.Disk.Partitions[0].Start != 63*512 || r.Disk.Partitions[0].Size != 1000*512 || r.Disk.Partitions[0].Fault != "" {
		t.Errorf("a disk with an MBR is described as %+v", r.Disk)
	}
	says(t, "MBR", text, "MBR, no GPT", "0x83", "fault: ends at")
}

func TestFilesThatAreNothing(t *testing.T) {
	for name, content := range map[string][]byte{
		"empty":          nil,
		"text":           []byte("hello"),
		"zeros":          make([]byte, 100_000),
		"JSON":           []byte(`{"format":1}`),
		"truncated JSON": []byte(`{"format":1,`),
		"header alone":   []byte("MZ"),
	} {
		if r, err := File(write(t, content)); err == nil {
			t.Errorf("%s is taken for %+v", name, r)
		}
	}
	if _, err := File(write(t, []byte("hello"))); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v, want %v", err, ErrUnknown)
	}
}

// What is damaged is shown as far as it goes, and what is wrong with it.
func TestDamagedEFI(t *testing.T) {
	image := testUKI(t)
	for want, content := range map[string][]byte{
		"ends at offset":    image[:len(image)/2],
		"boot contract":     bytes.Replace(image, []byte(`"epoch": 2`), []byte(`"epoch": x`), 1),
		"certificate table": certified(image, 1<<20),
	} {
		r, err := File(write(t, content))
		if err != nil || len(r.EFI.Sections) == 0 {
			t.Errorf("%s: %+v, %v", want, r, err)
			continue
		}
		if said := strings.Join(r.EFI.Faults, "\n"); !strings.Contains(said, want) {
			t.Errorf("faults %q, want one that names the %s", said, want)
		}
	}
}

// certified names a certificate table that is not there.
func certified(image []byte, size uint32) []byte {
	b := bytes.Clone(image)
	at := binary.LittleEndian.Uint32(b[60:]) + 24 + 112 + 4*8
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[at+4:], size)
	return b
}

// FAULTS 112 (B11)
func TestOrdinaryEFIPrograms(t *testing.T) {
	le := binary.LittleEndian
	plain := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("code")}, ukitest.Section{Name: ".data", Data: []byte("data")})
	const coff, sections = 64, 64 + 24 + 240
	changed := func(change func(b []byte)) []byte { b := bytes.Clone(plain); change(b); return b }
	for name, c := range map[string]struct {
		image []byte
		want  []string
	}{
		// iPXE and memtest86+: uninitialised data in a section of its own, or behind .data.
		".bss":        {changed(func(b []byte) { le.PutUint32(b[sections+40+8:], 0x900) }), []string{"section .data 512 bytes", "(2304 in memory)"}},
		"empty .bss":  {changed(func(b []byte) { le.PutUint32(b[sections+40+8:], 0x900); le.PutUint64(b[sections+40+16:], 0) }), []string{"section .data 0 bytes", "(2304 in memory)"}},
		"for aarch64": {changed(func(b []byte) { le.PutUint16(b[coff+4:], 0xaa64) }), []string{"aarch64", "section .text"}},
		"for 32 bits": {changed(func(b []byte) {
			le.PutUint16(b[coff+4:], 0x14c)
			le.PutUint16(b[coff+20:], 224)
			le.PutUint16(b[coff+24:], 0x10b)
			le.PutUint32(b[coff+24+92:], 16)
			copy(b[coff+24+224:], b[sections:sections+80])
		}), []string{"32-bit x86", "section .text", "no PE hash"}},
		// iPXE of Debian 13; debug/pe refuses what Go does not build for.
		"for LoongArch":  {changed(func(b []byte) { le.PutUint16(b[coff+4:], 0x6264) }), []string{"loongarch64", "section .text"}},
		"for EFI's own":  {changed(func(b []byte) { le.PutUint16(b[coff+4:], 0x0ebc) }), []string{"kind 0x0ebc", "section .text"}},
		"a name as shim": {long(plain, coff, sections), []string{"section .vendor_cert 4 bytes"}},
		"gap":            {changed(func(b []byte) { le.PutUint32(b[sections+16:], 256) }), []string{"no PE hash", "section .text"}},
		"two sections":   {changed(func(b []byte) { copy(b[sections+40:], ".text\x00\x00\x00") }), []string{"section .text"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, text := shown(t, c.image)
			if r.Kind != "efi" {
				t.Errorf("is a %s", r.Kind)
			}
			says(t, name, text, c.want...)
		})
	}
}

// long gives the second section a name of more than 8 bytes, which lies behind the
// symbols (PE format, "COFF String Table").
func long(image []byte, coff, sections int) []byte {
	const name = ".vendor_cert\x00"
	le := binary.LittleEndian
	b := bytes.Clone(image)
	copy(b[sections+40:], "/4\x00\x00\x00\x00\x00\x00")
	le.PutUint32(b[coff+12:], uint32(len(b)))
	return append(le.AppendUint32(b, uint32(4+len(name))), name...)
}

// FAULTS 112 (B11)
func TestRealEFIPrograms(t *testing.T) {
	debian := testkit.Debian(t)
	kernels, err := filepath.Glob(filepath.Join(debian, "boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in %s: %v", debian, err)
	}
	for _, file := range append(kernels, filepath.Join(debian, "usr/lib/systemd/boot/efi/linuxx64.efi.stub")) {
		r, err := File(file)
		if err != nil || r.EFI.Machine != "x86-64" || len(r.EFI.Sections) < 3 || len(r.EFI.Authenticode) != 32 {
			t.Errorf("%s: %+v, %v", file, r, err)
			continue
		}
		out := testkit.Run(t, "objdump", "-h", file)
		for _, s := range r.EFI.Sections {
			if !strings.Contains(out, s.Name) {
				t.Errorf("%s: objdump knows no section %s:\n%s", file, s.Name, out)
			}
		}
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
