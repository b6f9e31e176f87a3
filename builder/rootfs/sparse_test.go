package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/testkit"
)

// Sparse files come in five formats of GNU tar's, and with a directory. FAULTS 112 (B6)
func TestSparseFiles(t *testing.T) {
	const size, at = 64 << 20, 40<<20 + 12345
	source := t.TempDir()
	file := filepath.Join(source, "var", "log", "lastlog")
	write := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(os.MkdirAll(filepath.Dir(file), 0o755))
	write(os.WriteFile(file, []byte("start"), 0o644))
	write(os.Truncate(file, size))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	write(err)
	_, err = f.WriteAt([]byte("middle"), at)
	write(err)
	write(f.Close())
	sources := []string{source}
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=oldgnu"}, {"--format=posix", "--sparse-version=0.0"}, {"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"},
	} {
		archive := filepath.Join(t.TempDir(), strings.Join(args, "")+".tar")
		testkit.Run(t, "tar", append(args, "--sparse", "-C", source, "-cf", archive, ".")...)
		sources = append(sources, archive)
	}
	dense := filepath.Join(t.TempDir(), "dense.tar.gz")
	testkit.Run(t, "tar", "-C", source, "-czf", dense, ".")
	for _, from := range append(sources, dense) {
		tree := newTree(t)
		tree.limit = 1 << 20 // holes are free
		if err := tree.Fill(t.Context(), from, "x86_64"); err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		var s syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(tree.Dir(), "var/log/lastlog"), &s); err != nil || s.Size != size || s.Blocks*512 > 2<<20 || !tree.Sparse() {
			t.Errorf("%s: %d bytes take %d, %v", from, s.Size, s.Blocks*512, err)
		}
		f, err := tree.Open("var/log/lastlog")
		write(err)
		middle := make([]byte, 8)
		if _, err := f.ReadAt(middle, at-1); err != nil || string(middle) != "\x00middle\x00" {
			t.Errorf("%s: in the middle is %q, %v", from, middle, err)
		}
		write(f.Close())
	}
	tree := newTree(t)
	tree.limit = 100_000
	if err := tree.Fill(t.Context(), source, "x86_64"); err == nil || !strings.Contains(err.Error(), "lastlog") {
		t.Errorf("more than the limit: error %v", err)
	}
}

// FAULTS 112
func TestManyNamesOfOneFile(t *testing.T) {
	headers := []*tar.Header{header("first", tar.TypeReg, record("SCHILY.xattr.user.a", "b"))}
	for i := range 20 {
		target := "first"
		if i > 0 && i%3 == 0 { // any of its names is the file
			target = fmt.Sprintf("name-%d", i-1)
		}
		headers = append(headers, header(fmt.Sprintf("name-%d", i), tar.TypeLink, linkTo(target)))
	}
	file := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(file, pack(t, headers...), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	tree.maxNames = 8
	if err := tree.Fill(t.Context(), file, "x86_64"); err != nil {
		t.Fatal(err)
	}
	inodes := make(map[uint64]uint64)
	for _, h := range headers {
		info, err := tree.Lstat(h.Name)
		if err != nil {
			t.Fatal(err)
		}
		s := info.Sys().(*syscall.Stat_t)
		inodes[s.Ino]++
		if text, err := tree.ReadFile(h.Name, 100); err != nil || string(text) != "first" || !info.ModTime().Equal(date) || info.Mode().Perm() != 0o644 {
			t.Errorf("%s has %q, %v, %v, %v", h.Name, text, info.ModTime(), info.Mode(), err)
		}
		if have := xattr(t, tree, h.Name, "user.a"); have != "b" {
			t.Errorf("user.a of %s is %q", h.Name, have)
		}
	}
	if len(inodes) != 3 {
		t.Errorf("21 names of which 8 can be one file's are %v", inodes)
	}
}

// FAULTS 112 (B12)
func TestIncrementalDump(t *testing.T) {
	source := t.TempDir()
	for _, name := range []string{"dir/one", "dir/two"} {
		file := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "posix"} {
		out := t.TempDir()
		state := filepath.Join(out, "state")
		dump := func(name string) string {
			archive := filepath.Join(out, name)
			cmd := exec.Command(testkit.Need(t, "tar"), "--format="+format, "--listed-incremental="+state, "--label=backup", "-C", source, "-cf", archive, ".")
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			return archive
		}
		full := dump("full.tar")
		tree := newTree(t)
		if err := tree.Fill(t.Context(), full, "x86_64"); err != nil {
			t.Errorf("%s: %v", format, err)
		} else if have := names(t, tree); have != "dir/one dir/two" {
			t.Errorf("%s: a full dump has %s", format, have)
		}
		if err := os.WriteFile(filepath.Join(source, "dir/three-"+format), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := newTree(t).Fill(t.Context(), dump("more.tar"), "x86_64"); err == nil || !strings.Contains(err.Error(), `"dir/one" is in an earlier one`) {
			t.Errorf("%s: a partial dump: error %v", format, err)
		}
		if err := os.Remove(filepath.Join(source, "dir/three-"+format)); err != nil {
			t.Fatal(err)
		}
	}
}

// FAULTS 112 (B6)
func TestLargest(t *testing.T) {
	tree := newTree(t)
	for name, size := range map[string]int{"usr/lib/a/big": 900_000, "usr/lib/a/b/c/deep": 500_000, "usr/bin/one": 200_000, "var/small": 1000, "top": 10} {
		e := Entry{Name: name, Kind: Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(), Size: int64(size)}
		if err := tree.Put(e, bytes.NewReader(bytes.Repeat([]byte("x"), size))); err != nil {
			t.Fatal(err)
		}
	}
	list, err := tree.Largest(3)
	var have []string
	for _, u := range list {
		have = append(have, u.Name)
	}
	if want := "usr usr/lib/a usr/lib/a/b/c"; err != nil || strings.Join(have, " ") != want {
		t.Errorf("the largest are %q, %v; want %q", have, err, want)
	}
}
