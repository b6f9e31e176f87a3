package rootfs

import (
	"archive/tar"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// A default access control list above the staging directory gets into no file of it, and
// the source's own lists and attributes stay.
func TestListsOfTheHost(t *testing.T) {
	above := t.TempDir()
	if err := unix.Setxattr(above, defaultACL, []byte(acl("1 7 -1, 2 7 4242, 4 5 -1, 10 7 -1, 20 5 -1")), 0); errors.Is(err, unix.ENOTSUP) {
		testkit.Skip(t, "the directory for temporary files has no access control lists")
	} else if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(above, "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tree, err := NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	archive := filepath.Join(t.TempDir(), "archive")
	shadow := header("etc/shadow", tar.TypeReg)
	shadow.Mode = 0o640
	link := header("etc/shadow-", tar.TypeLink)
	link.Linkname = "etc/shadow"
	symlink := header("etc/link", tar.TypeSymlink)
	symlink.Linkname = "nowhere"
	own, list := record("SCHILY.xattr.user.note", "text"), record("SCHILY.acl.default", "user::rwx\nuser:77:r-x\ngroup::---\nmask::r-x\nother::---\n")
	content := pack(t, shadow, link, symlink, header("fifo", tar.TypeFifo), header("deep/er/file", tar.TypeReg, own), header("shared", tar.TypeDir, list))
	if err := errors.Join(os.WriteFile(archive, content, 0o600), tree.Fill(t.Context(), archive, "x86_64"),
		tree.AddFile("usr/lib/more", []byte("text"), 0o644, date), tree.AddSymlink("usr/lib/other", "more", date)); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.AddDirectory("var", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tree.Seal(date); err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		attributes, err := listXattrs(name)
		if len(attributes) > 0 {
			rel, _ := filepath.Rel(dir, name)
			have[rel] = strings.Join(attributes, " ")
		}
		return err
	})
	if want := map[string]string{"deep/er/file": "user.note", "shared": defaultACL}; err != nil || !maps.Equal(have, want) {
		t.Errorf("the tree has the attributes %v (%v), want %v", have, err, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "etc/shadow")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// What a security module gives a file is taken off, and where the kernel does not have it,
// it is named with the way out.
func TestLabelsOfTheHost(t *testing.T) {
	testkit.Root(t, "set labels")
	tree := newTree(t)
	if err := tree.AddFile("file", nil, 0o644, date); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(tree.Dir(), "file")
	label := func(names ...string) {
		for _, name := range names {
			if err := unix.Setxattr(file, name, []byte("label"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	clearHost := func(own map[string]string) error {
		dir, err := tree.parent("file")
		if err != nil {
			t.Fatal(err)
		}
		return tree.clearHost(dir, "file", own)
	}
	label(selinux, "trusted.host", "user.host", "user.own")
	if err := clearHost(map[string]string{"user.own": "label"}); err != nil {
		t.Fatal(err)
	}
	if left, err := listXattrs(file); err != nil || !slices.Equal(left, []string{"user.own"}) {
		t.Errorf("left are %v, %v", left, err)
	}
	for name, say := range map[string]string{selinux: "context=", "user.host": "user.host"} {
		label(name)
		immutable(t, file, true)
		err := clearHost(map[string]string{"user.own": "label"})
		immutable(t, file, false)
		if err == nil || !strings.Contains(err.Error(), say) || !strings.Contains(err.Error(), "--out") {
			t.Errorf("%s: error %v", name, err)
		}
		if err := clearHost(nil); err != nil {
			t.Fatal(err)
		}
	}
}

// immutable sets or takes the flag with which a file's attributes stay as they are.
func immutable(t *testing.T, file string, on bool) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		testkit.Skip(t, "the file system has no flags: "+err.Error())
	}
	const flag = 0x10 // FS_IMMUTABLE_FL (Linux, include/uapi/linux/fs.h)
	flags &^= flag
	if on {
		flags |= flag
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)); err != nil {
		testkit.Skip(t, "no file can be made immutable here: "+err.Error())
	}
}
