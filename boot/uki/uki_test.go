package uki_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
)

// Where ukitest.Image has its headers.
const (
	coff     = 64
	optional = coff + 24
	table    = optional + 240
)

// FAULTS 53
func TestParseRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := ukitest.Stub("257.1")
	tests := []struct {
		name string
		edit func(b []byte) []byte
		want string
	}{
		{"empty", func(b []byte) []byte { return nil }, "no MZ header"},
		{"cut in the headers", func(b []byte) []byte { return b[:200] }, "within the next"},
		{"cut in the last section", func(b []byte) []byte { return b[:len(b)-1] }, "ends at offset"},
		{"PE header at the end", func(b []byte) []byte { le.PutUint32(b[60:], uint32(len(b)-30)); return b }, "outside of the image"},
		{"PE header over the DOS header", func(b []byte) []byte { le.PutUint32(b[60:], 4); return b }, "outside of the image"},
		{"PE header at 4 GiB", func(b []byte) []byte { le.PutUint32(b[60:], 0xfffffff8); return b }, "outside of the image"},
		{"no signature", func(b []byte) []byte { b[coff] = 'X'; return b }, "no PE signature"},
		{"PE32", func(b []byte) []byte { le.PutUint16(b[optional:], 0x10b); return b }, "want 0x20b"},
		{"no sections", func(b []byte) []byte { le.PutUint16(b[coff+6:], 0); return b }, "0 sections"},
		{"65535 sections", func(b []byte) []byte { le.PutUint16(b[coff+6:], 65535); return b }, "65535 sections"},
		{"table past the headers", func(b []byte) []byte { le.PutUint16(b[coff+6:], 40); return b }, "within the next"},
		{"2^32-1 directories", func(b []byte) []byte { le.PutUint32(b[optional+108:], 0xffffffff); return b }, "data directories"},
		{"short optional header", func(b []byte) []byte { le.PutUint16(b[coff+20:], 120); return b }, "has no room"},
		{"alignment zero", func(b []byte) []byte { le.PutUint32(b[optional+36:], 0); return b }, "powers of two"},
		{"alignment 513", func(b []byte) []byte { le.PutUint32(b[optional+32:], 513); return b }, "powers of two"},
		{"name twice", func(b []byte) []byte { copy(b[table+40:], ".text\x00\x00\x00"); return b }, ".text is there twice"},
		{"no name", func(b []byte) []byte { clear(b[table : table+8]); return b }, "no name"},
		{"name with a tail", func(b []byte) []byte { copy(b[table:], ".te\x00xt\x00\x00"); return b }, "goes on behind its end"},
		{"name with a newline", func(b []byte) []byte { b[table+2] = '\n'; return b }, "not printable"},
		{"in the headers", func(b []byte) []byte { le.PutUint32(b[table+20:], 512); return b }, "overlaps"},
		{"overlap in the file", func(b []byte) []byte { le.PutUint32(b[table+40+20:], 1024); return b }, "overlaps"},
		{"overlap in memory", func(b []byte) []byte { le.PutUint32(b[table+40+12:], 4096); return b }, "overlaps"},
		{"memory over the headers", func(b []byte) []byte { le.PutUint32(b[table+12:], 0); return b }, "overlaps"},
		{"behind the image in memory", func(b []byte) []byte { le.PutUint32(b[table+80+12:], 0xfffffff0); return b }, "behind the image's end"},
		{"behind the file", func(b []byte) []byte { le.PutUint32(b[table+80+20:], 0xfffffe00); return b }, "ends at offset"},
		{"size past 4 GiB", func(b []byte) []byte { le.PutUint32(b[table+80+16:], 0xfffffe00); return b }, "ends at offset"},
		{"more in memory than stored", func(b []byte) []byte { le.PutUint32(b[table+80+8:], 600); return b }, "needs 600 bytes of memory"},
		{"certificates over a section", func(b []byte) []byte {
			le.PutUint32(b[optional+144:], 1024)
			le.PutUint32(b[optional+148:], uint32(len(b)-1024))
			return b
		}, "overlaps the sections"},
		{"certificates past the end", func(b []byte) []byte {
			le.PutUint32(b[optional+144:], uint32(len(b)))
			le.PutUint32(b[optional+148:], 8)
			return b
		}, "certificate table ends"},
		{"bytes behind the certificates", func(b []byte) []byte {
			le.PutUint32(b[optional+144:], uint32(len(b)))
			le.PutUint32(b[optional+148:], 8)
			return append(b, make([]byte, 9)...)
		}, "want nothing behind it"},
		{"certificates at an odd place", func(b []byte) []byte {
			le.PutUint32(b[optional+144:], uint32(len(b)+4))
			le.PutUint32(b[optional+148:], 8)
			return append(b, make([]byte, 12)...)
		}, "multiple of 8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := uki.Parse(test.edit(bytes.Clone(good)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := uki.Parse(good); err != nil {
		t.Errorf("the image that the faults were put into: %v", err)
	}
}

func TestStub(t *testing.T) {
	tests := []struct {
		magic string
		want  uki.Stub
	}{
		{"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####\x00", uki.Stub{Program: "systemd-stub", Version: "252.39-1~deb12u2", Major: 252}},
		{"#### LoaderInfo: systemd-stub 258~rc1 ####", uki.Stub{Program: "systemd-stub", Version: "258~rc1", Major: 258}},
		{"#### LoaderInfo: systemd-boot 257 ####\x00\x00", uki.Stub{Program: "systemd-boot", Version: "257", Major: 257}},
		{"#### LoaderInfo: systemd-stub main ####", uki.Stub{}},
		{"#### LoaderInfo: systemd-stub ####", uki.Stub{}},
		{"#### LoaderInfo: systemd-stub 257 extra ####", uki.Stub{}},
		{"#### LoaderInfo: systemd-stub 257", uki.Stub{}},
		{"LoaderInfo: systemd-stub 257 ####", uki.Stub{}},
	}
	for _, test := range tests {
		image, err := uki.Parse(ukitest.Image(ukitest.Section{Name: ".sdmagic", Data: []byte(test.magic)}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := image.Stub()
		if got != test.want || (err == nil) != (test.want.Major != 0) {
			t.Errorf("%q: %+v, %v; want %+v", test.magic, got, err, test.want)
		}
	}
	image, err := uki.Parse(ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("x")}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.Stub(); !errors.Is(err, uki.ErrNoStub) {
		t.Errorf("image without a mark: %v", err)
	}
}

func TestRealImages(t *testing.T) {
	tree := testkit.Tools13(t)
	for path, want := range map[string]string{
		"/usr/lib/systemd/boot/efi/linuxx64.efi.stub":   "systemd-stub",
		"/usr/lib/systemd/boot/efi/systemd-bootx64.efi": "systemd-boot",
	} {
		image, err := uki.Parse(tree.Read(path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if stub, err := image.Stub(); err != nil || stub.Program != want || stub.Major != 257 {
			t.Errorf("%s is %+v, %v; want %s 257", path, stub, err, want)
		}
	}
}

// FAULTS 53
func FuzzParse(f *testing.F) {
	f.Add(ukitest.Stub("257.1"))
	image, err := uki.Build(ukitest.Stub("252"), payload().Sections()[:2])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed, err := uki.Parse(data)
		if err != nil {
			return
		}
		total := 0
		for _, s := range parsed.Sections() {
			total += len(s.Data)
		}
		if total > len(data) {
			t.Errorf("sections of %d bytes in a file of %d", total, len(data))
		}
		_, _ = parsed.Stub()
		// Whatever can be built on must come out readable, with the section in it.
		built, err := uki.Build(data, []uki.Section{{Name: ".fuzz", Data: []byte("content")}})
		if err != nil {
			return
		}
		again, err := uki.Parse(built)
		if err != nil {
			t.Fatalf("built image: %v", err)
		}
		if got, _ := again.Section(".fuzz"); string(got) != "content" {
			t.Errorf("section reads %q", got)
		}
	})
}
