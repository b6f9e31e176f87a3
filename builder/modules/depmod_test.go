package modules_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/modules"
)

// What PlainDep and PlainDepBin make of depmod's files is, byte for byte, what depmod
// itself writes once the modules are unpacked; modinfo reads the same of them.
func TestPlainDepmod(t *testing.T) {
	testkit.Need(t, "depmod")
	found, err := filepath.Glob(testkit.Debian(t) + "/usr/lib/modules/*/kernel/fs/*/*.ko.xz")
	if err != nil || len(found) < 40 {
		t.Fatalf("modules %q, %v", found, err)
	}
	more, err := filepath.Glob(testkit.Debian(t) + "/usr/lib/modules/*/kernel/lib/*.ko.xz")
	if err != nil || len(more) == 0 {
		t.Fatalf("modules %q, %v", more, err)
	}
	const release = "6.12.0-test"
	base := t.TempDir()
	dir := filepath.Join(base, "lib/modules", release)
	var files []string
	for _, from := range append(found[:40], more...) {
		raw, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, "kernel", filepath.Base(filepath.Dir(from)), filepath.Base(from))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, to)
	}
	depmod := func() (dep, bin []byte) {
		testkit.Run(t, "depmod", "-b", base, release)
		for name, to := range map[string]*[]byte{"modules.dep": &dep, "modules.dep.bin": &bin} {
			if *to, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		return dep, bin
	}
	dep, bin := depmod()
	for _, file := range files {
		signer := testkit.Run(t, "modinfo", "-F", "signer", file)
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := modules.Unpack(file, raw)
		if err == nil {
			err = os.WriteFile(modules.PlainName(file), plain, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if now := testkit.Run(t, "modinfo", "-F", "signer", modules.PlainName(file)); now != signer || now == "" {
			t.Errorf("%s: signer %q, was %q", file, now, signer)
		}
	}
	wantDep, wantBin := depmod()
	if have := modules.PlainDep(dep); !bytes.Equal(have, wantDep) || bytes.Equal(have, dep) {
		t.Errorf("modules.dep is\n%s\nwant\n%s", have, wantDep)
	}
	if have, err := modules.PlainDepBin(bin); err != nil || !bytes.Equal(have, wantBin) {
		t.Errorf("modules.dep.bin has %d bytes, want %d: %v", len(have), len(wantBin), err)
	}
}

func TestPlainName(t *testing.T) {
	for name, want := range map[string]string{"a.ko.xz": "a.ko", "d/b.ko.zst": "d/b.ko", "c.ko.gz": "c.ko", "d.ko": "d.ko", "e.xz": "e.xz", "f.ko.lz4": "f.ko.lz4"} {
		if have := modules.PlainName(name); have != want {
			t.Errorf("%s becomes %s, want %s", name, have, want)
		}
	}
	text := "kernel/a.ko.xz: kernel/b.ko.zst  x.xz\n# a comment about .ko.xz files\nkernel/b.ko.zst:\n"
	want := "kernel/a.ko: kernel/b.ko  x.xz\n# a comment about .ko files\nkernel/b.ko:\n"
	if have := string(modules.PlainDep([]byte(text))); have != want {
		t.Errorf("%q, want %q", have, want)
	}
}

func FuzzPlainDepBin(f *testing.F) {
	f.Add([]byte("\xb0\x07\xf4\x57\x00\x02\x00\x01\x20\x00\x00\x1dab\x00\x00\x00\x00\x01\x00\x00\x00\x05k/a.ko.xz:\x00"))
	f.Add([]byte("\xb0\x07\xf4\x57\x00\x02\x00\x01\x20\x00\x00\x0caa\x20\x00\x00\x0c"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		have, err := modules.PlainDepBin(raw)
		if err != nil {
			return
		}
		again, err := modules.PlainDepBin(have)
		if err != nil || !bytes.Equal(again, have) {
			t.Errorf("%x became %x, and that %x: %v", raw, have, again, err)
		}
	})
}
