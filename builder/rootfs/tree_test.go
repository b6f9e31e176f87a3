package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

var date = time.Unix(1_700_000_000, 0)

func newTree(t testing.TB) *Tree {
	t.Helper()
	tree, err := NewTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// header describes a tar entry of the caller's, who need not be root.
func header(name string, kind byte, change ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Name: name, Typeflag: kind, Mode: 0o644, Uid: os.Geteuid(), Gid: os.Getegid(), ModTime: date, Format: tar.FormatPAX}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, c := range change {
		c(h)
	}
	return h
}

func linkTo(target string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = target } }

// pack makes a tar archive. A regular file's content is its own name.
func pack(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// fill puts an archive into a new tree.
func fill(t testing.TB, archive []byte) (*Tree, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(file, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	return tree, tree.Fill(t.Context(), file, "x86_64")
}

// FAULTS 112: what other archivers write
func TestContiguousFile(t *testing.T) {
	tree, err := fill(t, pack(t, header("a", tar.TypeCont)))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := tree.ReadFile("a", 10); err != nil || len(text) > 0 {
		t.Errorf("%q, %v", text, err)
	}
}

// Names are those inside the tree, and links on the way are the tree's, as GNU tar and
// the tools for containers have it. FAULTS 24, 25
func TestNamesAreInside(t *testing.T) {
	outside := t.TempDir()
	file := strings.TrimPrefix(outside, "/") + "/file"
	reg, dir, sym, hard := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	for name, c := range map[string]struct {
		entries []*tar.Header
		want    string
	}{
		"absolute names":                     {[]*tar.Header{header("/", dir), header("/usr", dir), header("//usr/file", reg), header("/link", hard, linkTo("/usr/file"))}, "link usr/file"},
		"a link that leads out":              {[]*tar.Header{header("a", sym, linkTo(outside)), header("a/file", reg)}, "a " + file},
		"a link that climbs":                 {[]*tar.Header{header("b", dir), header("b/a", sym, linkTo("../../../c")), header("b/a/file", reg)}, "b/a c/file"},
		"a link that stays inside":           {[]*tar.Header{header("b", dir), header("a", sym, linkTo("b")), header("a/file", reg), header("a/d/file", reg)}, "a b/d/file b/file"},
		"a link in place of a directory":     {[]*tar.Header{header("a", dir), header("a", sym, linkTo(outside)), header("a/file", reg)}, "a " + file},
		"a directory in place of a link":     {[]*tar.Header{header("b", dir), header("b/file", reg), header("a", sym, linkTo("b")), header("a", dir), header("a/file", reg)}, "a/file b/file"},
		"a hard link to what is below links": {[]*tar.Header{header("usr/lib/file", reg), header("lib", sym, linkTo("usr/lib")), header("lib/other", hard, linkTo("lib/file"))}, "lib usr/lib/file usr/lib/other"},
		"a file in place of a link":          {[]*tar.Header{header("usr/lib", dir), header("lib", sym, linkTo("usr/lib")), header("lib", reg)}, "lib"},
	} {
		tree, err := fill(t, pack(t, c.entries...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if have := names(t, tree); have != c.want {
			t.Errorf("%s: %s, want %s", name, have, c.want)
		}
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("outside there are %d files, %v", len(list), err)
	}
}

// What GNU tar packs with absolute names (-P) is what it packs without.
func TestAbsoluteNamesLikeTar(t *testing.T) {
	source := t.TempDir()
	for name, content := range map[string]string{"a/file": "1", "b/c/file": "2"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755), os.WriteFile(filepath.Join(source, name), []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(source, "a/file"), filepath.Join(source, "b/link")); err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, more := range [][]string{{"-P"}, nil} {
		archive := filepath.Join(t.TempDir(), "a.tar")
		testkit.Run(t, "tar", append(more, "--sort=name", "-cf", archive, source)...)
		tree := newTree(t)
		if err := tree.Fill(t.Context(), archive, "x86_64"); err != nil {
			t.Fatal(err)
		}
		have = append(have, names(t, tree))
	}
	if have[0] != have[1] || !strings.Contains(have[0], "b/link") {
		t.Errorf("%q", have)
	}
}

// Holes are free up to a bound, over which the file is named.
func TestManyHoles(t *testing.T) {
	source := t.TempDir()
	for name, size := range map[string]int64{"thirty": 30 << 30, "forty": 40 << 30} {
		file := filepath.Join(source, name)
		if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Truncate(file, size)); err != nil {
			t.Fatal(err)
		}
		tree := newTree(t)
		err := tree.CopyDirectory(t.Context(), source)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if name == "forty" {
			if err == nil || !strings.Contains(err.Error(), "forty: copy content: it has holes of more than 32 GB") {
				t.Errorf("40 GB: %v", err)
			}
			continue
		}
		all, largest, most, holesErr := tree.Holes()
		if err != nil || holesErr != nil || all != size || largest != name || most != size {
			t.Errorf("%v, %v: %d bytes, the most, %d, in %q", err, holesErr, all, most, largest)
		}
	}
}

// FAULTS 24, 25, 26, 29, 30
func TestHostileArchives(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "file")
	if err := os.WriteFile(secret, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	reg, dir, sym, hard := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	for _, c := range []struct {
		name    string
		entries []*tar.Header
		say     string
	}{
		{"name that leads out", []*tar.Header{header("../file", reg)}, "leads out"},
		{"name that leads out from within", []*tar.Header{header("a/../../file", reg)}, "leads out"},
		{"a ring of links", []*tar.Header{header("a", sym, linkTo("b")), header("b", sym, linkTo("a")), header("a/file", reg)}, "symbolic links"},
		{"write below a file", []*tar.Header{header("a", reg), header("a/file", reg)}, "below a"},
		{"hard link to outside", []*tar.Header{header("a", hard, linkTo("../file"))}, "leads out"},
		{"hard link to an absolute name", []*tar.Header{header("a", hard, linkTo(secret))}, "not a file of the tree"},
		{"a name that no file can have", []*tar.Header{header("dir/"+strings.Repeat("n", 256), reg)}, "has a name of 256 bytes"},
		{"a link's text that no link can have", []*tar.Header{header("a", sym, linkTo(strings.Repeat("n", 4096)))}, "4096 bytes"},
		{"hard link through a link", []*tar.Header{header("a", sym, linkTo(outside)), header("b", hard, linkTo("a/file"))}, "not a file of the tree"},
		{"hard link to nothing", []*tar.Header{header("b", hard, linkTo("a"))}, "hard link"},
		{"hard link to a directory", []*tar.Header{header("a", dir), header("b", hard, linkTo("a"))}, "not a file of the tree"},
		{"top that is a file", []*tar.Header{header("./", sym, linkTo(outside))}, "top of the tree"},
		{"device number", []*tar.Header{header("a", tar.TypeChar, func(h *tar.Header) { h.Devmajor = 1 << 20 })}, "device number"},
		{"unknown type", []*tar.Header{header("a", 'Z')}, "unknown type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := fill(t, pack(t, c.entries...))
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "untouched" {
		t.Errorf("the file outside has %q, %v", text, err)
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) != 1 {
		t.Errorf("outside there are %d files, %v", len(list), err)
	}
}

func TestTooLarge(t *testing.T) {
	tree := newTree(t)
	e := Entry{Name: "sparse", Kind: Regular, Size: maxFile + 1, UID: os.Geteuid(), GID: os.Getegid()}
	if err := tree.Put(e, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error %v", err)
	}
	e.Size = 10
	if err := tree.Put(e, strings.NewReader("short")); err == nil || !strings.Contains(err.Error(), "after 5 bytes of 10") {
		t.Errorf("error %v", err)
	}
	tree.entries = maxEntries
	if err := tree.Put(Entry{Name: "d", Kind: Directory, UID: os.Geteuid(), GID: os.Getegid()}, nil); err == nil {
		t.Error("too many files were taken")
	}
}

// FAULTS 29
func TestZerosBecomeHoles(t *testing.T) {
	const size = 1 << 30
	content := io.MultiReader(io.LimitReader(zeros{}, size-4), strings.NewReader("end!"))
	tree := newTree(t)
	if err := tree.Put(Entry{Name: "sparse", Kind: Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(), Size: size}, content); err != nil {
		t.Fatal(err)
	}
	var s syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(tree.Dir(), "sparse"), &s); err != nil || s.Size != size || s.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes take %d, %v", s.Size, s.Blocks*512, err)
	}
	f, err := tree.Open("sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := make([]byte, 6)
	if _, err := f.ReadAt(end, size-6); err != nil || string(end) != "\x00\x00end!" {
		t.Errorf("it ends with %q, %v", end, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestCutArchive(t *testing.T) {
	whole := pack(t, header("a", tar.TypeReg), header("b", tar.TypeReg))
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 1300, 2048} {
		if _, err := fill(t, whole[:n]); err == nil {
			t.Errorf("%d of %d bytes were taken for an archive", n, len(whole))
		}
	}
}

func TestCopyDirectory(t *testing.T) {
	source := t.TempDir()
	at := func(name string) string { return filepath.Join(source, name) }
	for _, err := range []error{
		os.MkdirAll(at("dir/sub"), 0o750),
		os.WriteFile(at("dir/file"), []byte("content"), 0o640),
		os.Link(at("dir/file"), at("dir/sub/again")),
		os.Symlink("/etc/passwd", at("link")),
		syscall.Mkfifo(at("pipe"), 0o600),
		os.Chtimes(at("dir/file"), date, date),
		os.Chmod(at("dir"), 0o3750|os.ModeSetgid|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(at("dir/file"), "user.note", []byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		defer syscall.Close(socket)
		err = syscall.Bind(socket, &syscall.SockaddrUnix{Name: at("socket")})
	}
	if err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	if err := tree.Fill(t.Context(), source, "x86_64"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Seal(time.Now()); err != nil {
		t.Fatal(err)
	}
	checkCopied(t, source, tree)
}

func checkCopied(t *testing.T, source string, tree *Tree) {
	t.Helper()
	for _, name := range []string{"dir", "dir/file", "dir/sub", "dir/sub/again", "link", "pipe"} {
		want, err := os.Lstat(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.Lstat(filepath.Join(tree.Dir(), name))
		if err != nil {
			t.Fatal(err)
		}
		if have.Mode() != want.Mode() || !have.ModTime().Equal(want.ModTime()) {
			t.Errorf("%s: %s of %s, want %s of %s", name, have.Mode(), have.ModTime(), want.Mode(), want.ModTime())
		}
	}
	a, _ := os.Stat(filepath.Join(tree.Dir(), "dir/file"))
	b, _ := os.Stat(filepath.Join(tree.Dir(), "dir/sub/again"))
	original, _ := os.Stat(filepath.Join(source, "dir/file"))
	if !os.SameFile(a, b) || os.SameFile(a, original) {
		t.Error("hard links: want the two copies to be one file, and not the source's")
	}
	if target, err := os.Readlink(filepath.Join(tree.Dir(), "link")); err != nil || target != "/etc/passwd" {
		t.Errorf("link to %q, %v", target, err)
	}
	if _, err := os.Lstat(filepath.Join(tree.Dir(), "socket")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket was copied: %v", err)
	}
	if have := tree.Sockets(); len(have) != 1 || have[0] != "socket" {
		t.Errorf("left out are %q", have)
	}
	if have, err := readXattrs(filepath.Join(tree.Dir(), "dir/file")); err != nil || have["user.note"] != "hello" {
		t.Errorf("extended attributes %q, %v", have, err)
	}
}

func TestSourcesThatAreNone(t *testing.T) {
	tree := newTree(t)
	for _, source := range []string{"/nonexistent", "/dev/null"} {
		if err := tree.Fill(t.Context(), source, "x86_64"); err == nil {
			t.Errorf("%s was taken", source)
		}
	}
	// A file system inside another is none of the image's.
	if err := tree.Fill(t.Context(), "/sys", "x86_64"); err == nil {
		t.Error("/sys was taken")
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(pack(f, header("a", tar.TypeDir), header("a/b", tar.TypeReg), header("c", tar.TypeSymlink, linkTo("/etc")), header("d", tar.TypeLink, linkTo("a/b"))))
	f.Add(pack(f, header("../a", tar.TypeReg)))
	f.Add(pack(f, header("a", tar.TypeSymlink, linkTo("..")), header("a/canary", tar.TypeReg)))
	f.Fuzz(func(t *testing.T, archive []byte) {
		around := t.TempDir()
		canary, stage := filepath.Join(around, "canary"), filepath.Join(around, "stage")
		if err := errors.Join(os.WriteFile(canary, []byte("alive"), 0o600), os.Mkdir(stage, 0o700)); err != nil {
			t.Fatal(err)
		}
		tree, err := NewTree(stage)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		tree.limit = 1 << 20
		_ = unpackTar(t.Context(), bytes.NewReader(archive), tree.Put)
		list, err := os.ReadDir(around)
		if text, readErr := os.ReadFile(canary); err != nil || readErr != nil || string(text) != "alive" || len(list) != 2 {
			t.Errorf("outside of the tree: %q, %v, %v", text, list, errors.Join(err, readErr))
		}
	})
}
