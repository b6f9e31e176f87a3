package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

func compressed(t *testing.T, kind string, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gz":
		w = gzip.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "zst":
		w, err = zstd.NewWriter(&out)
	case "lz4":
		z := lz4.NewWriter(&out)
		w, err = z, z.Apply(lz4.ChecksumOption(true))
	}
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpack(t *testing.T) {
	plain := pack(t,
		header("./", tar.TypeDir),
		header("./bin", tar.TypeDir, func(h *tar.Header) { h.Mode = 0o500 }),
		header("./bin/su", tar.TypeReg, func(h *tar.Header) { h.Mode = 0o4755 }),
		header("./bin/su2", tar.TypeLink, linkTo("./bin/su")),
		header("./sbin", tar.TypeSymlink, linkTo("/bin")),
		header("./deep/er/file", tar.TypeReg, func(h *tar.Header) { h.ModTime = date.Add(time.Hour) }),
		header(`./unit\x2dname`, tar.TypeReg),
		header("./pipe", tar.TypeFifo),
		header("./twice", tar.TypeReg),
		header("./twice", tar.TypeSymlink, linkTo("bin")),
		header("./noted", tar.TypeReg, func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.trusted.overlay.origin": "y"}
		}),
	)
	for _, kind := range []string{"", "gz", "xz", "zst"} {
		t.Run("."+kind, func(t *testing.T) {
			archive := plain
			if kind != "" {
				archive = compressed(t, kind, plain)
			}
			tree, err := fill(t, archive)
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.Seal(date); err != nil {
				t.Fatal(err)
			}
			checkUnpacked(t, tree)
			// So that the test's directory can be removed without root.
			if err := os.Chmod(filepath.Join(tree.Dir(), "bin"), 0o700); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func checkUnpacked(t *testing.T, tree *Tree) {
	t.Helper()
	stat := func(name string) syscall.Stat_t {
		var s syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(tree.Dir(), name), &s); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return s
	}
	for name, mode := range map[string]uint32{
		"bin": unix.S_IFDIR | 0o500, "bin/su": unix.S_IFREG | 0o4755, "bin/su2": unix.S_IFREG | 0o4755, "sbin": unix.S_IFLNK | 0o777,
		"deep": unix.S_IFDIR | 0o755, "pipe": unix.S_IFIFO | 0o644, "twice": unix.S_IFLNK | 0o777, `unit\x2dname`: unix.S_IFREG | 0o644,
	} {
		if have := stat(name).Mode; have != mode {
			t.Errorf("%s has mode %o, want %o", name, have, mode)
		}
	}
	if stat("bin/su").Ino != stat("bin/su2").Ino {
		t.Error("a hard link became a file of its own")
	}
	if have := stat("bin/su").Mtim.Sec; have != date.Unix() {
		t.Errorf("bin/su is of %d, want %d", have, date.Unix())
	}
	if have := stat("deep").Mtim.Sec; have != date.Unix() {
		t.Errorf("a directory that was not in the archive is of %d, want %d", have, date.Unix())
	}
	if want := date.Add(time.Hour); !tree.newest.ModTime.Equal(want) {
		t.Errorf("the newest file is of %s, want %s", tree.newest.ModTime, want)
	}
	if have, err := readXattrs(filepath.Join(tree.Dir(), "noted")); err != nil || len(have) != 1 || have["user.note"] != "hello" {
		t.Errorf("extended attributes %q, %v", have, err)
	}
}

func TestOwners(t *testing.T) {
	archive := pack(t, header("a", tar.TypeReg, func(h *tar.Header) { h.Uid, h.Gid = 12, 34 }), header("null", tar.TypeChar, func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }))
	tree, err := fill(t, archive)
	if os.Geteuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "run as root") {
			t.Errorf("without root: error %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var s syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(tree.Dir(), "a"), &s); err != nil || s.Uid != 12 || s.Gid != 34 {
		t.Errorf("owner %d:%d, %v", s.Uid, s.Gid, err)
	}
	if err := syscall.Lstat(filepath.Join(tree.Dir(), "null"), &s); err != nil || s.Mode != unix.S_IFCHR|0o644 || s.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("device of mode %o, number %x, %v", s.Mode, s.Rdev, err)
	}
}

func TestSquash(t *testing.T) {
	tree := newTree(t)
	tree.squash = true // as without root
	for _, e := range []Entry{
		{Name: "a", Kind: Regular, UID: 4242},
		{Name: "b", Kind: Regular, GID: 4242},
		{Name: "c", Kind: CharDevice, Major: 1, Minor: 3},
		{Name: "d", Kind: BlockDevice},
	} {
		if err := tree.Put(e, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "run as root") {
			t.Errorf("%s: error %v", e.Name, err)
		}
	}
	if err := tree.Put(Entry{Name: "e", Kind: Regular, Mode: 0o644, ModTime: date}, strings.NewReader("")); err != nil {
		t.Error(err)
	}
}
