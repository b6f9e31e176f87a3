package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/testkit"
)

var (
	date = time.Unix(1_700_000_000, 0)
	uuid = gpt.MustGUID("01020304-0506-8708-890a-0b0c0d0e0f10")
)

// directory makes the same tree in either order of its files.
func directory(t *testing.T, reversed bool) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 40 {
		if reversed {
			i = 39 - i
		}
		name := filepath.Join(dir, fmt.Sprintf("d%d", i%4), fmt.Sprintf("file-%d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i), 'x'}, 500*i), 0o644); err != nil {
			t.Fatal(err)
		}
		// Some before the date, some behind it.
		at := date.Add(time.Duration(i-20) * time.Hour)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func makeImage(t *testing.T, dir string, compression string) []byte {
	t.Helper()
	testkit.Need(t, Tool)
	file := filepath.Join(t.TempDir(), "image")
	if err := Make(t.Context(), file, dir, Options{UUID: uuid, Date: date, Compression: compression, AllRoot: true}); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// FAULTS 84
func TestSameBytes(t *testing.T) {
	for _, compression := range []string{"", "lz4hc"} {
		first := makeImage(t, directory(t, false), compression)
		t.Setenv("TZ", "Pacific/Chatham")
		t.Setenv("LC_ALL", "tr_TR.UTF-8")
		t.Setenv("SOURCE_DATE_EPOCH", "1")
		if second := makeImage(t, directory(t, true), compression); !bytes.Equal(first, second) {
			t.Errorf("compression %q: two images differ", compression)
		}
	}
}

// What is compressed by its name, mkfs.erofs leaves alone: here that costs
// something, since the name lies.
func TestPackedFiles(t *testing.T) {
	size := map[string]int{}
	for _, name := range []string{"module.ko.xz", "module.ko", "xz"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("text "), 1<<18), 0o644); err != nil {
			t.Fatal(err)
		}
		size[name] = len(makeImage(t, dir, "lz4hc"))
	}
	if size["module.ko.xz"] < 5<<18 || size["module.ko"] > 1<<17 || size["xz"] != size["module.ko"] {
		t.Errorf("images of %v bytes", size)
	}
}

// A file that grows moves all that follow. What a machine fetches for that are
// the file's blocks and those of inodes, not a block for each file.
func TestChangeStaysSmall(t *testing.T) {
	for _, compression := range []string{"", "lz4hc"} {
		have := map[string]bool{}
		for i := range 2 {
			dir := t.TempDir()
			noise := rand.NewChaCha8([32]byte{2})
			for n := range 200 {
				content := make([]byte, 5000)
				_, _ = noise.Read(content)
				if n == 0 {
					content = append(content, content[:5000*i]...)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%03d", n)), content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			changed := 0
			for b := range slices.Chunk(makeImage(t, dir, compression), BlockSize) {
				if !have[string(b)] {
					changed++
				}
				have[string(b)] = true
			}
			if i == 1 && (changed < 4 || changed > 20) {
				t.Errorf("compression %q: %d blocks changed", compression, changed)
			}
		}
	}
}

func TestOthersAgree(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image")
	image := makeImage(t, directory(t, false), "lz4hc")
	if err := os.WriteFile(file, image, 0o644); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "fsck.erofs", file)
	h, err := ReadHeader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if h.Blocks != uint64(len(image)/BlockSize) || !h.Created.Equal(date) || h.UUID != uuid || h.Inodes != 45 {
		t.Errorf("header %+v of an image of %d bytes", h, len(image))
	}
	said := testkit.Run(t, "dump.erofs", file)
	for _, want := range []string{uuid.String(), fmt.Sprintf("blocks: %31d", h.Blocks)} {
		if !strings.Contains(strings.Join(strings.Fields(said), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("dump.erofs says nothing of %q:\n%s", want, said)
		}
	}
	// Times before the date stay, later ones become it.
	for name, want := range map[string]time.Time{"/d1/file-1": date.Add(-19 * time.Hour), "/d3/file-39": date} {
		said := testkit.Run(t, "dump.erofs", "--path="+name, file)
		if !strings.Contains(said, want.Local().Format("2006-01-02 15:04:05")) || !strings.Contains(said, "Uid: 0 Gid: 0") && !strings.Contains(said, "Uid: 0   Gid: 0") {
			t.Errorf("%s: want root's, of %s:\n%s", name, want.Local(), said)
		}
	}
}

func TestMakeFails(t *testing.T) {
	testkit.Need(t, Tool)
	file := filepath.Join(t.TempDir(), "image")
	if err := Make(t.Context(), file, filepath.Join(t.TempDir(), "nothing"), Options{Date: date}); err == nil || !strings.Contains(err.Error(), Tool) {
		t.Errorf("error %v", err)
	}
	if err := Make(t.Context(), file, t.TempDir(), Options{Date: date, Compression: "nosuch"}); err == nil {
		t.Error("a compression that does not exist was taken")
	}
	t.Setenv("PATH", "/nonexistent")
	if err := Make(t.Context(), file, t.TempDir(), Options{Date: date}); err == nil || !strings.Contains(err.Error(), "erofs-utils") {
		t.Errorf("error %v", err)
	}
}

func TestDamagedHeader(t *testing.T) {
	image := makeImage(t, directory(t, false), "")
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		say    string
	}{
		{"truncated", func(b []byte) []byte { return b[:1100] }, "not an EROFS"},
		{"truncated behind the superblock", func(b []byte) []byte { return b[:2000] }, "EOF"},
		{"empty", func(b []byte) []byte { return nil }, "not an EROFS"},
		{"no magic", func(b []byte) []byte { b[1024]++; return b }, "not an EROFS"},
		{"a flipped bit", func(b []byte) []byte { b[1024+36] ^= 1; return b }, "checksum"},
		{"block size", func(b []byte) []byte { b[1024+12] = 63; return b }, "2^63"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadHeader(bytes.NewReader(c.change(bytes.Clone(image))))
			if err == nil || !strings.Contains(err.Error(), c.say) || strings.Contains(c.say, "not an") != errors.Is(err, ErrNotErofs) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}

func FuzzReadHeader(f *testing.F) {
	seed := make([]byte, 4096)
	copy(seed[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	seed[1024+12] = 12
	f.Add(seed)
	f.Add(seed[:1030])
	f.Fuzz(func(t *testing.T, image []byte) {
		if h, err := ReadHeader(bytes.NewReader(image)); err == nil && len(image) < superblockOffset+superblockSize {
			t.Errorf("%d bytes have the header %+v", len(image), h)
		}
	})
}

// A provenance names the version of the program that made the file system. What they say,
// of Debian 12 (which exits with 1) and 13.
func TestToolVersion(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{`echo "mkfs.erofs: unrecognized option '--version'" >&2; echo 'usage: [options] FILE DIRECTORY' >&2; echo 'mkfs.erofs 1.5'; exit 1`, "1.5"},
		{`echo 'mkfs.erofs (erofs-utils) 1.8.6'; echo 'available compressors: lz4, lz4hc, lzma, deflate, libdeflate, zstd'`, "1.8.6"},
		{`echo 'mkfs.erofs: unknown'`, ""},
		{`echo 'usage: [options] FILE DIRECTORY'; exit 1`, ""},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, Tool), []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		if got := ToolVersion(t.Context()); got != c.want {
			t.Errorf("%s: %q, want %q", c.script, got, c.want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if got := ToolVersion(t.Context()); got != "" {
		t.Errorf("without the program: %q", got)
	}
}

// The same of the program that is here, whichever it is.
func TestToolVersionHere(t *testing.T) {
	said := testkit.Need(t, Tool)
	if got := ToolVersion(t.Context()); got == "" {
		t.Errorf("%s tells no version", said)
	}
}
