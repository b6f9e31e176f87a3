package uki_test

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// hostStub is where Debian's systemd-boot-efi has the stub of the machine
// that runs the tests (252 on Debian 12).
const hostStub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func readHostStub(t testing.TB) []byte {
	t.Helper()
	stub, err := os.ReadFile(hostStub)
	if err != nil {
		testkit.Skip(t, "systemd-boot-efi is not installed: "+err.Error())
	}
	return stub
}

func payload() uki.Payload {
	return uki.Payload{
		OSRelease: []byte("ID=test\nVERSION_ID=1\n"),
		Cmdline:   []byte("lockdown=integrity panic=10"),
		Uname:     []byte("6.12.0-test"),
		Linux:     ukitest.Image(ukitest.Section{Name: ".text", Data: bytes.Repeat([]byte{0x90}, 9000)}),
		Initrd:    bytes.Repeat([]byte("initrd"), 12345),
		Splash:    []byte("BM"),
	}
}

func build(t testing.TB, stub []byte, sections ...uki.Section) []byte {
	t.Helper()
	image, err := uki.Build(stub, sections)
	if err != nil {
		t.Fatal(err)
	}
	var written bytes.Buffer
	if err := uki.Write(&written, stub, sections); err != nil || !bytes.Equal(written.Bytes(), image) {
		t.Errorf("Write writes %d bytes that are not the %d of Build: %v", written.Len(), len(image), err)
	}
	return image
}

func TestBuildRoundTrip(t *testing.T) {
	sections := payload().Sections()
	image := build(t, ukitest.Stub("257.1"), sections...)
	parsed, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range sections {
		if got, ok := parsed.Section(want.Name); !ok || !bytes.Equal(got, want.Data) {
			t.Errorf("section %s came back as %d bytes (there: %v), want %d", want.Name, len(got), ok, len(want.Data))
		}
	}
	if got := len(parsed.Sections()); got != 3+len(sections) {
		t.Errorf("%d sections, want %d", got, 3+len(sections))
	}
	if _, ok := parsed.Section(".pcrsig"); ok {
		t.Error("a section that was not given is there")
	}
	if len(image)%512 != 0 {
		t.Errorf("image of %d bytes is not a multiple of 512", len(image))
	}
	if again := build(t, ukitest.Stub("257.1"), sections...); !bytes.Equal(image, again) {
		t.Error("two builds differ")
	}
	if _, err := pe.NewFile(bytes.NewReader(image)); err != nil {
		t.Errorf("debug/pe: %v", err)
	}
}

// Aligned, each section lies at a block of the file, nothing lies between two, and what is
// loaded is the same.
func TestBuildAligned(t *testing.T) {
	const block = 4096
	sections := payload().Sections()
	image, err := uki.BuildAligned(ukitest.Stub("257.1"), sections, block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := uki.Parse(build(t, ukitest.Stub("257.1"), sections...))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := uki.Parse(image)
	if err != nil || !reflect.DeepEqual(parsed.Sections(), plain.Sections()) {
		t.Errorf("other sections are loaded, %v", err)
	}
	file, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	end := uint32(0)
	for i, s := range file.Sections {
		if end != 0 && s.Offset != end {
			t.Errorf("section %s begins at byte %d, the one before ends at %d", s.Name, s.Offset, end)
		}
		if i > len(file.Sections)-len(sections) && s.Offset%block != 0 {
			t.Errorf("section %s begins at byte %d", s.Name, s.Offset)
		}
		end = s.Offset + s.Size
	}
	if int(end) != len(image) {
		t.Errorf("the last section ends at byte %d of %d", end, len(image))
	}
}

// Wherever the stub ends, no section has more bytes in the file than lie before the next one in
// memory. Behind a short one, which always has room, they lie at blocks.
func TestBuildAlignedRoom(t *testing.T) {
	const block = 4096
	moved := 0
	for text := 512; text <= 2*block; text += 512 {
		stub := ukitest.Image(ukitest.Section{Name: ".text", Data: bytes.Repeat([]byte{0xf4}, text)}, ukitest.Section{Name: ".sbat", Data: []byte("sbat,1")})
		for _, first := range []int{1, 512, 513, 600, block - 512, block - 1, block, block + 1, 3*block - 511} {
			sections := []uki.Section{{Name: ".osrel", Data: make([]byte, first)}, {Name: ".cmdline", Data: make([]byte, 700)}, {Name: ".uname", Data: make([]byte, 300)}, {Name: ".linux", Data: make([]byte, 5000)}}
			image, err := uki.BuildAligned(stub, sections, block)
			if err != nil {
				t.Fatal(err)
			}
			file, err := pe.NewFile(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			align := file.OptionalHeader.(*pe.OptionalHeader64).SectionAlignment
			for i, s := range file.Sections {
				room := (s.VirtualSize + align - 1) &^ (align - 1)
				if i+1 < len(file.Sections) {
					room = file.Sections[i+1].VirtualAddress - s.VirtualAddress
				}
				if s.Size > room || s.Size < s.VirtualSize {
					t.Errorf("text of %d bytes, first of %d: section %s has %d bytes, in memory there are %d", text, first, s.Name, s.Size, room)
				}
			}
			if s := file.Sections[len(file.Sections)-3]; s.Offset%block != 0 {
				moved++
			}
			if s := file.Sections[len(file.Sections)-1]; s.Offset%block != 0 {
				t.Errorf("text of %d bytes, first of %d: %s lies at %d", text, first, s.Name, s.Offset)
			}
		}
	}
	if moved == 0 {
		t.Error("no first section lacked room")
	}
}

// The judge of the layout: the same input through Debian 13's ukify must give
// the same bytes.
func TestBuildEqualsUkify(t *testing.T) {
	tree := testkit.Tools13(t)
	stubs := map[string][]byte{
		"debian 13": tree.Read(hostStub),
		"synthetic": ukitest.Stub("257.1"),
		"host":      readHostStub(t),
	}
	nx := payload()
	old := payload()
	old.Linux = bytes.Clone(old.Linux)
	binary.LittleEndian.PutUint16(old.Linux[64+24+70:], 0)
	noKernelPE := payload()
	noKernelPE.Linux = []byte("not a PE image")
	for stubName, stub := range stubs {
		for name, p := range map[string]uki.Payload{"nx kernel": nx, "old kernel": old, "no PE kernel": noKernelPE} {
			t.Run(stubName+"/"+name, func(t *testing.T) {
				want := runUkify(t, tree, stub, p)
				got := build(t, stub, p.Sections()...)
				if parsed, err := uki.Parse(want); err == nil {
					p.SBAT, _ = parsed.Section(".sbat") // ukify merges its own into the stub's
					got = build(t, stub, p.Sections()...)
				} else {
					// In stub 252 ukify's .sbat runs into .sdmagic, so the stub's is put back.
					restoreSBAT(t, want, stub)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("differs from ukify's at byte %d (%d bytes, ukify's has %d)", firstDifference(got, want), len(got), len(want))
				}
			})
		}
	}
}

func restoreSBAT(t *testing.T, image, stub []byte) {
	t.Helper()
	parsed, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		t.Fatal(err)
	}
	s := parsed.Section(".sbat")
	copy(image[s.Offset:s.Offset+s.Size], stub[s.Offset:])
	entry := bytes.Index(image, []byte(".sbat\x00\x00\x00"))
	copy(image[entry:entry+40], stub[entry:])
}

func runUkify(t *testing.T, tree *testkit.Tree, stub []byte, p uki.Payload) []byte {
	t.Helper()
	out := tree.Path("uki.efi")
	tree.Run("ukify", "build",
		"--stub="+tree.Put("stub", stub),
		"--linux="+tree.Put("linux", p.Linux),
		"--initrd="+tree.Put("initrd", p.Initrd),
		"--cmdline=@"+tree.Put("cmdline", p.Cmdline),
		"--os-release=@"+tree.Put("osrel", p.OSRelease),
		"--uname="+string(p.Uname),
		"--splash="+tree.Put("splash", p.Splash),
		"--output="+out)
	return tree.Read(out)
}

func TestUkifyInspect(t *testing.T) {
	tree := testkit.Tools13(t)
	p := payload()
	image := build(t, tree.Read(hostStub), p.Sections()...)
	var seen map[string]struct {
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
		Text   string `json:"text"`
	}
	text := tree.Run("ukify", "inspect", tree.Put("uki.efi", image), "--json=short", "--all")
	if err := json.Unmarshal(text, &seen); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, s := range p.Sections() {
		if seen[s.Name].Size != len(s.Data) {
			t.Errorf("ukify sees %d bytes in %s, want %d", seen[s.Name].Size, s.Name, len(s.Data))
		}
	}
	if seen[".cmdline"].Text != string(p.Cmdline) {
		t.Errorf("ukify reads the command line %q", seen[".cmdline"].Text)
	}
}

// objdump reads the section table with other code than ukify and debug/pe.
func TestObjdump(t *testing.T) {
	image := build(t, readHostStub(t), payload().Sections()...)
	parsed, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "uki.efi")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	dump := testkit.Run(t, "objdump", "-h", file)
	var got, want []string
	for line := range strings.Lines(dump) {
		fields := strings.Fields(line)
		if len(fields) == 7 && strings.HasPrefix(fields[1], ".") {
			got = append(got, fields[1]+" "+fields[2])
		}
	}
	for _, s := range parsed.Sections() {
		want = append(want, fmt.Sprintf("%s %08x", s.Name, len(s.Data)))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("objdump sees\n%v\nwant\n%v", got, want)
	}
}

func TestBuildReplacesSBAT(t *testing.T) {
	stub := ukitest.Stub("257.1")
	image := build(t, stub, uki.Section{Name: ".linux", Data: []byte("k")}, uki.Section{Name: ".sbat", Data: []byte("sbat,2\n")})
	parsed, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := parsed.Section(".sbat"); string(got) != "sbat,2\n" {
		t.Errorf(".sbat reads %q", got)
	}
	if got := len(parsed.Sections()); got != 4 {
		t.Errorf("%d sections, want 4: .sbat takes the place of the stub's", got)
	}
}

// A stub's symbol and certificate tables are not carried over.
func TestBuildDropsTables(t *testing.T) {
	le := binary.LittleEndian
	plain := ukitest.Stub("252.1")
	symbols := bytes.Clone(plain)
	le.PutUint32(symbols[64+12:], uint32(len(plain)))
	le.PutUint32(symbols[64+16:], 1)
	symbols = append(symbols, make([]byte, 18)...)
	symbols = append(symbols, 9, 0, 0, 0, 'n', 'a', 'm', 'e', 0)

	signed := bytes.Clone(plain)
	le.PutUint32(signed[64+24+112+4*8:], uint32(len(plain)))
	le.PutUint32(signed[64+24+112+4*8+4:], 16)
	signed = append(signed, 16, 0, 0, 0, 0, 2, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8)

	want := build(t, plain, uki.Section{Name: ".linux", Data: []byte("k")})
	if got := build(t, signed, uki.Section{Name: ".linux", Data: []byte("k")}); !bytes.Equal(got, want) {
		t.Errorf("signed stub: differs from the unsigned one's image at byte %d", firstDifference(got, want))
	}
	if got := build(t, symbols, uki.Section{Name: ".linux", Data: []byte("k")}); !bytes.Equal(got, want) {
		t.Errorf("stub with symbols: differs at byte %d", firstDifference(got, want))
	}
}

func TestBuildRefuses(t *testing.T) {
	le := binary.LittleEndian
	stub := ukitest.Stub("257.1")
	linux := uki.Section{Name: ".linux", Data: []byte("k")}
	var many []uki.Section
	for i := range 15 {
		many = append(many, uki.Section{Name: fmt.Sprintf(".s%d", i), Data: []byte("x")})
	}
	change := func(edit func(b []byte)) []byte {
		b := bytes.Clone(stub)
		edit(b)
		return b
	}
	tests := []struct {
		name     string
		stub     []byte
		sections []uki.Section
		want     string
	}{
		{"no stub", nil, []uki.Section{linux}, "no MZ header"},
		{"cut stub", stub[:len(stub)-1], []uki.Section{linux}, "ends at offset"},
		{"header full", stub, many, "room for 14 more sections, need 15"},
		{"twice", stub, []uki.Section{linux, linux}, ".linux is there twice"},
		{"stub's own", stub, []uki.Section{{Name: ".text", Data: []byte("x")}}, ".text is there twice"},
		{"sbat twice", stub, []uki.Section{{Name: ".sbat", Data: []byte("x")}, {Name: ".sbat", Data: []byte("x")}}, ".sbat is there twice"},
		{"empty", stub, []uki.Section{{Name: ".linux"}}, "is empty"},
		{"long name", stub, []uki.Section{{Name: ".linuxlinux", Data: []byte("x")}}, "is not a dot"},
		{"no dot", stub, []uki.Section{{Name: "linux", Data: []byte("x")}}, "is not a dot"},
		{"strange name", stub, []uki.Section{{Name: ".li nux", Data: []byte("x")}}, "not printable"},
		{"large sbat", stub, []uki.Section{{Name: ".sbat", Data: make([]byte, 513)}}, "has room for 512"},
		{"sbat into the next section", change(func(b []byte) { le.PutUint32(b[64+24+240+2*40+12:], 8192+200) }), []uki.Section{{Name: ".sbat", Data: make([]byte, 201)}}, "begins after 200"},
		{"foreign tail", append(bytes.Clone(stub), 1), []uki.Section{linux}, "belong to nothing"},
		{"header slack in use", change(func(b []byte) { b[64+24+240+3*40+5] = 1 }), []uki.Section{linux}, "is in use"},
		{"unaligned section", change(func(b []byte) { le.PutUint32(b[64+24+240+2*40+16:], 100) }), []uki.Section{linux}, "not aligned"},
		{"huge alignment", change(func(b []byte) { le.PutUint32(b[64+24+36:], 1<<31) }), []uki.Section{linux}, "not aligned"},
		{"symbols nowhere", change(func(b []byte) { le.PutUint32(b[64+12:], 0xfffffff0) }), []uki.Section{linux}, "symbol table"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := uki.Build(test.stub, test.sections)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func BenchmarkBuild(b *testing.B) {
	stub := ukitest.Stub("257.1")
	sections := uki.Payload{Linux: make([]byte, 12<<20), Initrd: make([]byte, 36<<20)}.Sections()
	b.SetBytes(48 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := uki.Build(stub, sections); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	stub := ukitest.Stub("257.1")
	sections := uki.Payload{Linux: make([]byte, 12<<20), Initrd: make([]byte, 36<<20)}.Sections()
	b.SetBytes(48 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if err := uki.Write(io.Discard, stub, sections); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkObjcopy is the same work done by a foreign tool, for comparison.
func BenchmarkObjcopy(b *testing.B) {
	tool := testkit.Need(b, "objcopy")
	stub := readHostStub(b)
	directory := b.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	stubFile := write("stub", stub)
	linux, initrd := write("linux", make([]byte, 12<<20)), write("initrd", make([]byte, 36<<20))
	b.SetBytes(48 << 20)
	for b.Loop() {
		out, err := exec.Command(tool,
			"--add-section", ".linux="+linux, "--change-section-vma", ".linux=0x2000000",
			"--add-section", ".initrd="+initrd, "--change-section-vma", ".initrd=0x4000000",
			stubFile, filepath.Join(directory, "uki.efi")).CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
}
