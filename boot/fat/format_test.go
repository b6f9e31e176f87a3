package fat

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/testkit"
)

var sampleTime = time.Date(2026, 11, 23, 4, 5, 7, 990_000_000, time.UTC)

func sampleOptions(sectorSize int) Options {
	return Options{SectorSize: sectorSize, VolumeID: 0x1234abcd, Label: "ESP", Time: sampleTime, Zeroed: true}
}

// file returns a file of n reproducible bytes.
func file(path string, n int) File {
	return File{Path: path, Size: int64(n), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(noise(path, n))), nil
	}}
}

func noise(seed string, n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8(sha256.Sum256([]byte(seed)))
	_, _ = c.Read(b)
	return b
}

// sampleFiles has what is hard: names that are not short names, that become the
// same short name, empty files, files that end with a cluster, a directory of
// several clusters, deep directories, and an empty one.
func sampleFiles() map[string]int {
	files := map[string]int{
		"EFI/BOOT/BOOTX64.EFI":              150_001,
		"EFI/systemd/systemd-bootx64.efi":   4096,
		"EFI/Linux/debian_1.efi":            3<<20 + 17,
		"EFI/Linux/debian_2+3-0.efi":        8192,
		"EFI/Linux/debian_20261123+2-1.efi": 8193,
		"loader/loader.conf":                0,
		"loader/entries.srel":               7,
		"UPPER.TXT":                         512,
		"lower.txt":                         513,
		"Mixed.Case.With.Dots":              1,
		".hidden":                           2,
		"grüße zusammen.txt":                100,
		"🦊.txt":                             99,
		"thirteen-char":                     13,
		strings.Repeat("n", 255):            300,
		"a/b/c/d/e/f/g/deep.bin":            70_000,
	}
	for i := range 150 {
		files[fmt.Sprintf("many/file number %d.data", i)] = i
	}
	return files
}

func asFiles(m map[string]int) []File {
	var files []File
	for path, n := range m {
		files = append(files, file(path, n))
	}
	return append(files, File{Path: "empty directory/"}) // maps shuffle the rest
}

type imageCase struct {
	size       int64
	sectorSize int
}

var imageCases = []imageCase{
	{33 << 20, 512}, {100 << 20, 512}, {260 << 20, 512}, {260<<20 + 512, 512}, {512 << 20, 512}, {2 << 30, 512},
	{512 << 20, 4096}, {2 << 30, 4096}, {300<<20 + 4096*3, 4096},
}

func imageFile(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "fat.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// fsckIsSilent fails unless fsck.vfat reports two lines: its name, and sums.
func fsckIsSilent(t *testing.T, path string) {
	t.Helper()
	out := testkit.Run(t, "fsck.vfat", "-n", path)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], path+": ") {
		t.Errorf("fsck.vfat says:\n%s", out)
	}
}

func TestForeignToolsAgree(t *testing.T) {
	for _, tool := range []string{"fsck.vfat", "mcopy", "mdir"} {
		testkit.Need(t, tool)
	}
	t.Setenv("LC_ALL", "C.UTF-8")
	files := sampleFiles()
	delete(files, "🦊.txt") // mtools knows the basic plane only
	for _, c := range imageCases {
		t.Run(fmt.Sprintf("%d MiB in sectors of %d", c.size>>20, c.sectorSize), func(t *testing.T) {
			img := imageFile(t, c.size)
			if err := Format(img, c.size, sampleOptions(c.sectorSize), asFiles(files)); err != nil {
				t.Fatal(err)
			}
			fsckIsSilent(t, img.Name())

			listing := testkit.Run(t, "mdir", "-/", "-b", "-i", img.Name())
			if !strings.Contains(listing, "::/EFI/Linux/debian_20261123+2-1.efi") {
				t.Errorf("mdir says:\n%s", listing)
			}
			to := t.TempDir()
			testkit.Run(t, "mcopy", "-s", "-n", "-i", img.Name(), "::/*", to)
			compareTree(t, os.DirFS(to), files)
		})
	}
}

// compareTree fails unless fsys has exactly the files.
func compareTree(t *testing.T, fsys fs.FS, files map[string]int) {
	t.Helper()
	found := 0
	err := fs.WalkDir(fsys, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		found++
		n, ok := files[path]
		if !ok {
			t.Errorf("%q should not be there", path)
			return nil
		}
		got, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, noise(path, n)) {
			t.Errorf("%q: %d bytes, differ from the %d written", path, len(got), n)
		}
		return nil
	})
	if err != nil || found != len(files) {
		t.Errorf("%d of %d files found: %v", found, len(files), err)
	}
}

func TestWeReadOurs(t *testing.T) {
	files := sampleFiles()
	for _, c := range imageCases {
		disk := blocktest.New(c.size, blocktest.Hostile)
		o := sampleOptions(c.sectorSize)
		o.Zeroed = false
		if err := Format(disk, c.size, o, asFiles(files)); err != nil {
			t.Fatal(err)
		}
		fsys, err := Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		compareTree(t, fsys, files)
		i := fsys.Info()
		if i.SectorSize != c.sectorSize || i.VolumeID != 0x1234abcd || i.Label != "ESP" || i.Dirty || i.Size != c.size/int64(c.sectorSize)*int64(c.sectorSize) {
			t.Errorf("info %+v", i)
		}
		if s, err := fsys.Stat("empty directory"); err != nil || !s.IsDir() || !s.ModTime().Equal(time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)) {
			t.Errorf("empty directory: %+v, %v", s, err)
		}
		// FAT compares without case, and knows the short names.
		for _, name := range []string{"efi/boot/bootx64.efi", "EFI/LINUX/DEBIAN~1.EFI", "efi/Linux/DEBIAN_1.efi"} {
			if _, err := fsys.Stat(name); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFSBehavesAsIoFsWants(t *testing.T) {
	disk := blocktest.New(64<<20, blocktest.Zero)
	files := map[string]int{} // it reads each byte by byte
	for path, n := range sampleFiles() {
		if n < 10_000 && !strings.HasPrefix(path, "many/") {
			files[path] = n
		}
	}
	if err := Format(disk, 64<<20, sampleOptions(512), asFiles(files)); err != nil {
		t.Fatal(err)
	}
	fsys, err := Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Collect(func(yield func(string) bool) {
		for path := range files {
			if !yield(path) {
				return
			}
		}
	})
	if err := fstest.TestFS(fsys, append(names, "empty directory")...); err != nil {
		t.Error(err)
	}
}

func TestWeReadMkfsAndMtools(t *testing.T) {
	mkfs, mcopy := testkit.Need(t, "mkfs.vfat"), testkit.Need(t, "mcopy")
	t.Setenv("LC_ALL", "C.UTF-8")
	for _, c := range []imageCase{{40 << 20, 512}, {512 << 20, 512}, {512 << 20, 4096}} {
		img := imageFile(t, c.size)
		testkit.Run(t, mkfs, "-F", "32", "-S", fmt.Sprint(c.sectorSize), "-n", "FOREIGN", img.Name())
		src := t.TempDir()
		files := map[string]int{}
		for path, n := range sampleFiles() {
			if path == "🦊.txt" || len(path) == 255 {
				continue // mtools writes neither
			}
			files[path] = n
			if err := os.MkdirAll(filepath.Join(src, filepath.Dir(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(src, path), noise(path, n), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		entries, err := os.ReadDir(src)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-s", "-i", img.Name()}
		for _, e := range entries {
			args = append(args, filepath.Join(src, e.Name()))
		}
		if out, err := exec.Command(mcopy, append(args, "::/")...).CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v\n%s", err, out)
		}
		fsys, err := Open(img)
		if err != nil {
			t.Fatal(err)
		}
		compareTree(t, fsys, files)
		if i := fsys.Info(); i.SectorSize != c.sectorSize || i.Dirty || i.Label != "FOREIGN" {
			t.Errorf("info %+v", i)
		}
	}
}

func hash(t *testing.T, d *blocktest.Disk) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d, 0, d.Size())); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// FAULTS 84: the order in which files come, and the time zone, do not matter.
func TestDeterministic(t *testing.T) {
	const size = 64 << 20
	var first [32]byte
	for i := range 3 {
		o := sampleOptions(512)
		o.Time = o.Time.In(time.FixedZone("elsewhere", i*3600))
		o.Zeroed = i != 2
		disk := blocktest.New(size, blocktest.Zero)
		if err := Format(disk, size, o, asFiles(sampleFiles())); err != nil {
			t.Fatal(err)
		}
		if sum := hash(t, disk); i == 0 {
			first = sum
		} else if sum != first {
			t.Errorf("run %d differs", i)
		}
	}
}

// A volume that was formatted over garbage is as good as one in a fresh file,
// and Zeroed writes little.
func TestZeroed(t *testing.T) {
	const size = 512 << 20
	files := []File{file("EFI/BOOT/BOOTX64.EFI", 100_000), file("zeros.bin", 0)}
	files[1] = File{Path: "zeros.bin", Size: 100 << 20, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(zeroReader{}, 100<<20)), nil
	}}
	r := blocktest.Record(blocktest.New(size, blocktest.Zero))
	if err := Format(r, size, sampleOptions(512), files); err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, op := range r.Log() {
		written += len(op.Data)
	}
	if written > 1<<20 {
		t.Errorf("%d bytes written for %d of content", written, 100_000)
	}
	if last := r.Log()[len(r.Log())-1]; last.Off != 0 {
		t.Errorf("the last write is at byte %d, not the boot sector's", last.Off)
	}

	img := imageFile(t, size)
	garbage := bytes.Repeat([]byte{0xaa}, 16<<20)
	for off := int64(0); off < 32<<20; off += int64(len(garbage)) {
		if _, err := img.WriteAt(garbage, off); err != nil {
			t.Fatal(err)
		}
	}
	o := sampleOptions(512)
	o.Zeroed = false
	if err := Format(img, size, o, files); err != nil {
		t.Fatal(err)
	}
	fsckIsSilent(t, img.Name())
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFullVolume(t *testing.T) {
	const size = 33 << 20
	g, err := planGeometry(size, 512)
	if err != nil {
		t.Fatal(err)
	}
	room := int(g.clusters-1) * 512 // all but the root's cluster
	img := imageFile(t, size)
	if err := Format(img, size, sampleOptions(512), []File{file("FULL.BIN", room)}); err != nil {
		t.Fatal(err)
	}
	fsckIsSilent(t, img.Name())
	r := blocktest.Record(blocktest.New(size, blocktest.Zero))
	err = Format(r, size, sampleOptions(512), []File{file("FULL.BIN", room+1)})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("need %d clusters of 512 bytes, the volume has %d", g.clusters+1, g.clusters)) || len(r.Log()) != 0 {
		t.Errorf("one byte too many: %v after %d writes", err, len(r.Log()))
	}
}

func TestFormatRefuses(t *testing.T) {
	many := make([]File, 65536)
	for i := range many {
		many[i] = File{Path: fmt.Sprintf("D/%08X", i)}
	}
	for _, c := range []struct {
		name  string
		size  int64
		o     func(*Options)
		files []File
		want  string
	}{
		{"sector size", 1 << 30, func(o *Options) { o.SectorSize = 1024 }, nil, "sector size of 1024"},
		{"too small", 32 << 20, nil, nil, "FAT32 has at least 65525"},
		{"too small for large sectors", 250 << 20, func(o *Options) { o.SectorSize = 4096 }, nil, "FAT32 has at least 65525"},
		{"no size", 0, nil, nil, "0 clusters"},
		{"negative size", -1, nil, nil, "volume of -1 bytes"},
		{"too large", 3 << 40, nil, nil, "at most 2^32 sectors"},
		{"label too long", 1 << 30, func(o *Options) { o.Label = "TWELVE CHARS" }, nil, "at most 11"},
		{"label in lower case", 1 << 30, func(o *Options) { o.Label = "esp" }, nil, "upper case"},
		{"label of spaces", 1 << 30, func(o *Options) { o.Label = "  " }, nil, "without spaces at its ends"},
		{"no name", 1 << 30, nil, []File{file("", 1)}, "not a file name"},
		{"absolute", 1 << 30, nil, []File{file("/a", 1)}, "not a file name"},
		{"way out", 1 << 30, nil, []File{file("a/../../b", 1)}, "not a file name"},
		{"colon", 1 << 30, nil, []File{file("a:b", 1)}, "FAT has not"},
		{"backslash", 1 << 30, nil, []File{file(`a\b`, 1)}, "FAT has not"},
		{"control character", 1 << 30, nil, []File{file("a\x1bb", 1)}, "FAT has not"},
		{"period at the end", 1 << 30, nil, []File{file("a.", 1)}, "ends with a period"},
		{"space at the end", 1 << 30, nil, []File{file("a /b", 1)}, "ends with a space"},
		{"not UTF-8", 1 << 30, nil, []File{file("a\xff", 1)}, "not UTF-8"},
		{"too long", 1 << 30, nil, []File{file(strings.Repeat("n", 256), 1)}, "at most 255"},
		{"too deep", 1 << 30, nil, []File{file(strings.Repeat("d/", 130)+"f", 1)}, "directories deep"},
		{"twice", 1 << 30, nil, []File{file("a/b", 1), file("a/b", 1)}, "already"},
		{"twice but for case", 1 << 30, nil, []File{file("a/B", 1), file("a/b", 1)}, "only in case"},
		{"directories differ in case", 1 << 30, nil, []File{file("EFI/a", 1), file("efi/b", 1)}, "only in case"},
		{"file as a directory", 1 << 30, nil, []File{file("a", 1), file("a/b", 1)}, "already"},
		{"directory as a file", 1 << 30, nil, []File{file("a/b", 1), file("a", 1)}, "already"},
		{"directory with content", 1 << 30, nil, []File{file("a/", 1)}, "no content"},
		{"negative file", 1 << 30, nil, []File{{Path: "a", Size: -1, Open: file("a", 0).Open}}, "-1 bytes"},
		{"file of 4 GiB", 8 << 30, nil, []File{{Path: "a", Size: 1 << 32, Open: file("a", 0).Open}}, "4294967296 bytes"},
		{"nothing to read", 1 << 30, nil, []File{{Path: "a", Size: 1}}, "nothing to read"},
		{"full directory", 1 << 30, nil, many, "directory entries, at most 65536"},
	} {
		o := sampleOptions(512)
		if c.o != nil {
			c.o(&o)
		}
		r := blocktest.Record(blocktest.New(max(c.size, 0), blocktest.Zero))
		err := Format(r, c.size, o, c.files)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(r.Log()) != 0 {
			t.Errorf("%s: %v after %d writes, want %q and none", c.name, err, len(r.Log()), c.want)
		}
	}
}

func TestSourcesThatMisbehave(t *testing.T) {
	broken := errors.New("cannot read")
	reader := func(n int, end error) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, n)), failing{end})), nil
		}
	}
	for _, c := range []struct {
		name string
		file File
		want string
	}{
		{"shorter", File{Path: "a", Size: 1000, Open: reader(999, io.EOF)}, "unexpected EOF"},
		{"nothing at all", File{Path: "a", Size: 1000, Open: reader(0, io.EOF)}, "unexpected EOF"},
		{"longer", File{Path: "a", Size: 1000, Open: reader(1001, io.EOF)}, "more than 1000 bytes"},
		{"not empty", File{Path: "a", Size: 0, Open: reader(1, io.EOF)}, "more than 0 bytes"},
		{"fails", File{Path: "a", Size: 1000, Open: reader(10, broken)}, "cannot read"},
		{"fails at the end", File{Path: "a", Size: 1000, Open: reader(1000, broken)}, "cannot read"},
		{"does not open", File{Path: "a", Size: 1000, Open: func() (io.ReadCloser, error) { return nil, broken }}, "open: cannot read"},
	} {
		disk := blocktest.New(64<<20, blocktest.Zero)
		err := Format(disk, disk.Size(), sampleOptions(512), []File{c.file})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if _, err := Open(disk); err == nil {
			t.Errorf("%s: the failed attempt left a volume", c.name)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestDiskThatFails(t *testing.T) {
	broken := errors.New("input/output error")
	files := []File{file("EFI/BOOT/BOOTX64.EFI", 10_000)}
	r := blocktest.Record(blocktest.New(64<<20, blocktest.Hostile))
	o := sampleOptions(512)
	o.Zeroed = false
	if err := Format(r, 64<<20, o, files); err != nil {
		t.Fatal(err)
	}
	for k := range r.Log() {
		again := blocktest.Record(blocktest.New(64<<20, blocktest.Hostile))
		again.Inject(blocktest.Fault{Write: k + 1, Err: broken})
		if err := Format(again, 64<<20, o, files); !errors.Is(err, broken) {
			t.Fatalf("write %d of %d fails: %v", k+1, len(r.Log()), err)
		}
	}
}
