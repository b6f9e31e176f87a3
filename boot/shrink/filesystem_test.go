package shrink_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/boot/shrink/shrinktest"
	"halogenos.internal/boot/testkit"
)

const before, after = 64 << 20, 40 << 20 // bytes of a file system

// files are the files of a directory by what they hold.
func files(t *testing.T, directory string) map[string][32]byte {
	t.Helper()
	sums := map[string][32]byte{}
	err := filepath.WalkDir(directory, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(directory, name)
		sums[rel] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// ext4 makes an ext4 whose files lie at its end, and returns it with what they hold.
func ext4(t *testing.T) (image string, sums map[string][32]byte) {
	t.Helper()
	directory := t.TempDir()
	r := rand.NewChaCha8([32]byte{5})
	for i := range 12 {
		b := make([]byte, 20_000+i*7_000)
		if i == 0 {
			b = make([]byte, 44<<20) // it goes again
		}
		_, _ = r.Read(b)
		if err := os.WriteFile(filepath.Join(directory, fmt.Sprintf("file%02d", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image = filepath.Join(t.TempDir(), "ext4")
	testkit.Run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "1", "-d", directory, image, fmt.Sprint(before>>10)+"K")
	testkit.Run(t, "debugfs", "-w", "-R", "rm file00", image)
	if err := os.Remove(filepath.Join(directory, "file00")); err != nil {
		t.Fatal(err)
	}
	return image, files(t, directory)
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shrunk is what resize2fs makes of a copy of an image, as long as the image.
func shrunk(t *testing.T, image string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "shrunk")
	if err := os.WriteFile(to, read(t, image), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-f", "-p", to).CombinedOutput(); err != nil && err.(*exec.ExitError).ExitCode() != 1 {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	testkit.Run(t, "resize2fs", to, fmt.Sprint(after>>10)+"K")
	old, fresh := read(t, image), read(t, to) // of a file it is cut off at the end
	return append(fresh, old[len(fresh):]...)
}

// wellMade has e2fsck and debugfs judge an image.
func wellMade(t *testing.T, what string, image []byte, want map[string][32]byte) {
	t.Helper()
	name, out := filepath.Join(t.TempDir(), "judged"), t.TempDir()
	if err := os.WriteFile(name, image[:after], 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "e2fsck", "-f", "-n", name)
	testkit.Run(t, "debugfs", "-R", "rdump / "+out, name)
	if got := files(t, out); len(got) != len(want) {
		t.Errorf("%s: %d files, want %d", what, len(got), len(want))
	}
	for name, sum := range files(t, out) {
		if sum != want[name] {
			t.Errorf("%s: %s holds something else", what, name)
		}
	}
}

// A real ext4 is made smaller by a real resize2fs, whose changes lie in a store. Cut before
// each chunk and in it, the redo that begins again makes the same of it.
func TestRedoOfExt4(t *testing.T) {
	testkit.Need(t, "resize2fs")
	image, sums := ext4(t)
	old, fresh := read(t, image), shrunk(t, image)
	if end, err := shrink.FileSystemEnd("ext4", bytes.NewReader(old)); err != nil || end != before {
		t.Fatalf("it ends at %d, %v", end, err)
	}
	var chunks []shrinktest.Chunk
	for at := range uint64(before / shrink.ChunkSize) {
		b := fresh[at*shrink.ChunkSize:][:shrink.ChunkSize]
		if !bytes.Equal(b, old[at*shrink.ChunkSize:][:shrink.ChunkSize]) {
			chunks = append(chunks, shrinktest.Chunk{Number: at, Content: b})
		}
	}
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(chunks), func(i, j int) { chunks[i], chunks[j] = chunks[j], chunks[i] })
	if len(chunks) < 100 {
		t.Fatalf("resize2fs changes %d chunks: nothing was moved", len(chunks))
	}
	d := lay(t, 2*len(chunks)+10, chunks...)
	s, err := shrink.Open(d, d.Size(), shrink.Range{End: before})
	if err != nil {
		t.Fatal(err)
	}
	origin := blocktest.New(before, 0)
	if _, err := origin.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	judge := []int{0, len(chunks) / 2, len(chunks)}
	for n := range len(chunks) + 1 {
		for _, torn := range []int{0, 512} {
			again := origin.Overlay()
			if n < len(chunks) {
				_, _ = again.WriteAt(chunks[n].Content[:torn], int64(chunks[n].Number)*shrink.ChunkSize)
			}
			if err := s.Redo(again, func(int64) {}); err != nil {
				t.Fatal(err)
			}
			for _, c := range chunks {
				b := make([]byte, shrink.ChunkSize)
				if _, err := again.ReadAt(b, int64(c.Number)*shrink.ChunkSize); err != nil || !bytes.Equal(b, c.Content) {
					t.Fatalf("cut after %d chunks and %d bytes: chunk %d is another, %v", n, torn, c.Number, err)
				}
			}
			if torn == 512 && slices.Contains(judge, n) {
				b := make([]byte, before)
				if _, err := again.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				wellMade(t, fmt.Sprintf("cut after %d chunks", n), b, sums)
			}
		}
		if n < len(chunks) {
			_, _ = origin.WriteAt(chunks[n].Content, int64(chunks[n].Number)*shrink.ChunkSize)
		}
	}
	if end, err := shrink.FileSystemEnd("ext4", origin); err != nil || end != after {
		t.Errorf("it ends at %d, %v", end, err)
	}
	t.Logf("%d chunks", len(chunks))
}

func TestFileSystemEnd(t *testing.T) {
	testkit.Need(t, "mkfs.btrfs")
	image := filepath.Join(t.TempDir(), "btrfs")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 200<<20); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "mkfs.btrfs", "-q", "--byte-count", fmt.Sprint(150<<20), image)
	b := read(t, image)
	if end, err := shrink.FileSystemEnd("btrfs", bytes.NewReader(b)); err != nil || end != 150<<20 {
		t.Errorf("btrfs ends at %d, %v", end, err)
	}
	for name, c := range map[string]struct {
		kind string
		b    []byte
	}{
		"another kind": {"xfs", b}, "btrfs for ext4": {"ext4", b}, "nothing": {"ext4", nil}, "zeros": {"btrfs", make([]byte, 1<<20)}, "a short one": {"btrfs", b[:66<<10]},
	} {
		if end, err := shrink.FileSystemEnd(c.kind, bytes.NewReader(c.b)); err == nil {
			t.Errorf("%s: it ends at %d", name, end)
		}
	}
}

func FuzzFileSystemEnd(f *testing.F) {
	f.Add(make([]byte, 1024), true)
	f.Fuzz(func(t *testing.T, b []byte, ext bool) {
		kind, at := "btrfs", 64<<10
		if ext {
			kind, at = "ext4", 1024
		}
		d := make([]byte, 80<<10)
		copy(d[at:], b)
		if end, err := shrink.FileSystemEnd(kind, bytes.NewReader(d)); err == nil && end <= 0 {
			t.Errorf("it ends at %d", end)
		}
	})
}
