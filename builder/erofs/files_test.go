package erofs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// several makes a tree with files of all kinds: empty, short, long, compressible and not,
// with several names, and so many that a directory takes blocks.
func several(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	random := rand.NewChaCha8([32]byte{7})
	for i := range 400 {
		content := bytes.Repeat([]byte{byte(i), byte(i >> 4), 'x'}, 11*i)
		if i%3 == 0 {
			_, _ = random.Read(content)
		}
		name := filepath.Join(dir, fmt.Sprintf("usr/d%d/a-file-with-a-name-that-takes-room-%04d%s", i%2, i, []string{".ko", ".txt"}[i%2]))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "usr/d0/a-file-with-a-name-that-takes-room-0300.ko"), filepath.Join(dir, "another-name")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("another-name", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Walk finds every file where it is, as the tree had it, and Plain keeps files out of the
// compression; fsck.erofs finds nothing wrong.
func TestWalk(t *testing.T) {
	testkit.Need(t, Tool)
	dir := several(t)
	for _, compression := range []string{"", "lz4hc"} {
		file := filepath.Join(t.TempDir(), "image")
		if err := Make(t.Context(), file, dir, Options{UUID: uuid, Date: date, Compression: compression, AllRoot: true, Plain: `\.ko$`}); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "fsck.erofs", file)
		image, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		err = Walk(bytes.NewReader(image), func(f File) error {
			count++
			want, err := os.ReadFile(filepath.Join(dir, f.Name))
			if err != nil || int64(len(want)) != f.Size {
				t.Errorf("%s of %d bytes: %d, %v", f.Name, f.Size, len(want), err)
				return nil
			}
			if plain := compression == "" || strings.HasSuffix(f.Name, ".ko"); plain && !f.Plain && f.Size > 0 {
				t.Errorf("compression %q: %s is not plain", compression, f.Name)
			}
			if !f.Plain {
				return nil
			}
			have := image[int64(f.First)*BlockSize:][:f.Blocks()*BlockSize]
			if !bytes.Equal(have[:f.Size], want) || len(bytes.Trim(have[f.Size:], "\x00")) > 0 {
				t.Errorf("compression %q: %s does not lie at block %d", compression, f.Name, f.First)
			}
			return nil
		})
		if err != nil || count != 401 {
			t.Errorf("compression %q: %d files, %v", compression, count, err)
		}
	}
}

func FuzzWalk(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 5000), 0o644); err != nil {
		f.Fatal(err)
	}
	file := filepath.Join(f.TempDir(), "image")
	testkit.Need(f, Tool)
	if err := Make(f.Context(), file, dir, Options{UUID: uuid, Date: date, AllRoot: true}); err != nil {
		f.Fatal(err)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	image[1024+8] &^= 1 // without a checksum, which no change would pass
	f.Add(image)
	f.Fuzz(func(t *testing.T, image []byte) {
		_ = Walk(bytes.NewReader(image), func(f File) error {
			if f.Plain && int64(f.First)+int64(f.Blocks()) > int64(1<<32) {
				t.Errorf("%+v", f)
			}
			return nil
		})
	})
}
