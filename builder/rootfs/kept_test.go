package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// lists are access control lists as archivers write them, and as the kernel
// keeps them.
var lists = []struct{ name, text, kept string }{
	{"GNU tar", "user::rw-\nuser:1234:rw-\ngroup::---\nmask::rw-\nother::---\n", acl("1 6 -1, 2 6 1234, 4 0 -1, 10 6 -1, 20 0 -1")},
	{"GNU tar, names", "user::rw-\nuser:alice:r--\ngroup::---\ngroup:staff:-w-\nmask::rw-\nother::---\n", acl("1 6 -1, 2 4 1000, 4 0 -1, 8 2 50, 10 6 -1, 20 0 -1")},
	{"bsdtar", "user::rw-,group::r--,other::r--,user:1234:rw-,group:daemon:r--:1,mask::rw-", acl("1 6 -1, 2 6 1234, 4 4 -1, 8 4 1, 10 6 -1, 20 4 -1")},
	{"star", "user::rwx,user:joe:rwx:4294967294,group::r-x,mask::rwx,other::r-x", acl("1 7 -1, 2 7 4294967294, 4 5 -1, 10 7 -1, 20 5 -1")},
	{"setfacl", "u::rwx,u:5:r,g::r,m:rwx,o:r #effective:r--", acl("1 7 -1, 2 4 5, 4 4 -1, 10 7 -1, 20 4 -1")},
	{"out of order", "other::---\nmask::r--\nuser:9:r--\nuser:8:r--\ngroup::---\nuser::rw-\n", acl("1 6 -1, 2 4 8, 2 4 9, 4 0 -1, 10 4 -1, 20 0 -1")},
	{"no more than the mode", "user::rw-\ngroup::r--\nother::r--\n", acl("1 6 -1, 4 4 -1, 20 4 -1")},
}

// acl is a list as Linux has it: tag, permissions and number of each entry.
func acl(entries string) string {
	out := []byte{2, 0, 0, 0}
	for e := range strings.SplitSeq(entries, ", ") {
		var tag, perm byte
		var id int64
		if _, err := fmt.Sscanf(e, "%x %d %d", &tag, &perm, &id); err != nil {
			panic(err)
		}
		out = append(out, tag, 0, perm, 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return string(out)
}

type fixed map[string]uint32

func (f fixed) number(_ bool, name string) (uint32, error) {
	id, ok := f[name]
	if !ok {
		return 0, fmt.Errorf("no %s", name)
	}
	return id, nil
}

// FAULTS 112 (B2)
func TestAccessControlLists(t *testing.T) {
	known := fixed{"alice": 1000, "staff": 50}
	for _, c := range lists {
		if have, err := encodeACL(c.text, known); err != nil || have != c.kept {
			t.Errorf("%s: %x, %v; want %x", c.name, have, err, c.kept)
		}
	}
	for text, say := range map[string]string{
		"user::rw-": "lacks",
		"user::rw-,group::r--,other::r--,user:1:r--":               "no mask",
		"user::rw-,group::r--,other::r--,user::r--":                "twice",
		"user::rw-,group::r--,other::r--,mask:x:r--":               "unknown kind",
		"user::rq-,group::r--,other::r--":                          "unknown permission",
		"user::rw-,group::r--,other::r--,user:bob:r,m::r":          "no bob",
		"user:4294967295:r--,user::rw-,group::r--,other::r--,m::r": "no 4294967295",
		"owner@:rw-p--aARWcCos:-------:allow":                      "unknown kind",
	} {
		if have, err := encodeACL(text, known); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%q gives %x, %v; want an error that says %q", text, have, err, say)
		}
	}
}

func FuzzACL(f *testing.F) {
	for _, c := range lists {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := encodeACL(text, fixed{"alice": 1})
		if err == nil && (len(list)%8 != 4 || len(list) < modeACL) {
			t.Errorf("%q gives %d bytes", text, len(list))
		}
	})
}

func record(key, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[key] = value
	}
}

func xattr(t *testing.T, tree *Tree, name, key string) string {
	t.Helper()
	value := make([]byte, 4096)
	n, err := unix.Lgetxattr(filepath.Join(tree.Dir(), name), key, value)
	if err != nil {
		return err.Error()
	}
	return string(value[:n])
}

// What each archiver writes of the same files. FAULTS 112 (B2)
func TestAttributesInArchives(t *testing.T) {
	testkit.Root(t, "set labels and lists for others")
	const label, capability = "system_u:object_r:etc_t:s0", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	numbers := lists[0]
	for name, records := range map[string][]func(*tar.Header){
		"GNU tar --acls --selinux --xattrs": {
			record("SCHILY.acl.access", numbers.text), record("RHT.security.selinux", label),
			record("SCHILY.xattr.user.odd", "\x01\xff=\n"), record("SCHILY.xattr.security.capability", capability),
		},
		"GNU tar, list of names beside the binary one": {
			record("SCHILY.acl.access", "user::rw-\nuser:nobody-knows:rw-\ngroup::---\nmask::rw-\nother::---\n"), record("SCHILY.xattr.system.posix_acl_access", numbers.kept),
			record("SCHILY.xattr.security.selinux", label), record("SCHILY.xattr.user.odd", "\x01\xff=\n"), record("SCHILY.xattr.security.capability", capability),
		},
		"bsdtar": {
			record("SCHILY.acl.access", strings.ReplaceAll(strings.TrimSpace(numbers.text), "\n", ",")), record("SCHILY.xattr.security.selinux", label),
			record("LIBARCHIVE.xattr.security.selinux", "c3lzdGVtX3U6b2JqZWN0X3I6ZXRjX3Q6czA"), record("LIBARCHIVE.xattr.user.o%64d", "Af89Cg"),
			record("LIBARCHIVE.xattr.security.capability", "AQAAAgAEAAAAAAAAAAAAAAAAAAA="),
		},
	} {
		t.Run(name, func(t *testing.T) {
			change := append(records, func(h *tar.Header) { h.Mode = 0o660 })
			tree, err := fill(t, pack(t, header("file", tar.TypeReg, change...), header("dir", tar.TypeDir, record("SCHILY.acl.default", lists[2].text), record("RHT.security.selinux", label)),
				header("plain", tar.TypeDir, record("SCHILY.acl.default", lists[6].text), record("SCHILY.acl.access", lists[6].text))))
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.Seal(date); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct{ file, key, want string }{
				{"file", accessACL, numbers.kept}, {"file", selinux, label}, {"file", "user.odd", "\x01\xff=\n"}, {"file", "security.capability", capability},
				{"dir", defaultACL, lists[2].kept}, {"dir", selinux, label}, {"plain", defaultACL, lists[6].kept}, {"plain", accessACL, unix.ENODATA.Error()},
			} {
				if have := xattr(t, tree, c.file, c.key); have != c.want {
					t.Errorf("%s of %s is %q, want %q", c.key, c.file, have, c.want)
				}
			}
			if info, err := tree.Lstat("file"); err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// Accounts are those of the root file system, wherever it has them. FAULTS 112
func TestAccountsOfLists(t *testing.T) {
	list := record("SCHILY.acl.access", "user::rw-\nuser:root.tar:r--\ngroup::---\ngroup:etc/group:r--\nmask::r--\nother::---\n")
	archive := pack(t, header("file", tar.TypeReg, list), header("usr/lib/passwd", tar.TypeReg), header("etc/group", tar.TypeReg))
	accounts := map[string]string{"usr/lib/passwd": "root.tar:x:77", "etc/group": "etc/group:x:7"}
	for name, text := range accounts { // same length as the names that pack writes
		archive = bytes.Replace(archive, []byte(name+strings.Repeat("\x00", 100)), []byte(text+strings.Repeat("\x00", 100+len(name)-len(text))), 1)
	}
	_, err := fill(t, archive)
	if err == nil || !strings.Contains(err.Error(), `has no "root.tar"`) || !strings.Contains(err.Error(), "--numeric-owner") || !strings.Contains(err.Error(), "file") {
		t.Errorf("a list of strangers: error %v", err)
	}
	tree := newTree(t)
	e := Entry{Name: "etc/passwd", Kind: Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(), ModTime: date}
	for name, text := range map[string]string{"usr/lib/passwd": "root:x:0:0\nroot.tar:x:77:7\n", "etc/group": "etc/group:x:7:\nbroken\n:x:1\nbig:x:4294967295\n"} {
		e.Name, e.Size = name, int64(len(text))
		if err := tree.Put(e, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	file := e
	file.Name, file.Size = "file", 0
	file.ACLs = map[string]string{accessACL: "user::rw-\nuser:root.tar:r--\ngroup::---\ngroup:etc/group:r--\nmask::r--\nother::---\n"}
	gone := file
	gone.Name = "gone"
	gone.ACLs = map[string]string{accessACL: "user:stranger:r--"}
	for _, e := range []Entry{file, gone} {
		if err := tree.Put(e, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Remove("gone"); err != nil {
		t.Fatal(err)
	}
	if err := tree.resolveACLs(); err != nil {
		t.Fatal(err)
	}
	if have, want := xattr(t, tree, "file", accessACL), acl("1 6 -1, 2 4 77, 4 0 -1, 8 4 7, 10 4 -1, 20 0 -1"); have != want {
		t.Errorf("the list is %x, want %x", have, want)
	}
}

// FAULTS 112 (B2)
func TestAttributesThatCannotBeKept(t *testing.T) {
	for key, say := range map[string]string{
		"SCHILY.acl.ace":                        "NFSv4",
		"SCHILY.xattr.system.richacl":           "system.richacl",
		"SCHILY.xattr.com.apple.quarantine":     "--xattrs-exclude=com.apple.quarantine",
		"SCHILY.xattr.trusted.overlay.redirect": "overlay",
		"SCHILY.realsize":                       "star",
		"LIBARCHIVE.xattr.user.%zz":             "LIBARCHIVE",
		"SCHILY.acl.default":                    "only a directory",
	} {
		_, err := fill(t, pack(t, header("some/file", tar.TypeReg, record(key, "user::rw-,group::r--,other::r--,user:1:r--,mask::r--"))))
		if err == nil || !strings.Contains(err.Error(), say) || !strings.Contains(err.Error(), "some/file") {
			t.Errorf("%s: error %v, want one that says %q and names the file", key, err, say)
		}
	}
	// These are not the file's, but those of where it lay.
	for _, key := range []string{"SCHILY.xattr.trusted.overlay.origin", "SCHILY.xattr.security.evm", "SCHILY.xattr.btrfs.compression", "SCHILY.fflags", "comment"} {
		if _, err := fill(t, pack(t, header("file", tar.TypeReg, record(key, "x")))); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A directory, and the archive that GNU tar makes of it. FAULTS 112 (B2)
func TestKeptByDirectoryAndTar(t *testing.T) {
	testkit.Root(t, "set labels and owners")
	source := t.TempDir()
	odd := "not-\xff\xfe-utf8"
	long := strings.Repeat("n", maxName)
	for _, name := range []string{"file", odd, long, "old", "late", "owner"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(source, "dir"), 0o2775); err != nil {
		t.Fatal(err)
	}
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	label := "system_u:object_r:shadow_t:s0"
	for _, x := range []struct{ file, key, value string }{
		{"file", accessACL, lists[0].kept}, {"dir", accessACL, lists[2].kept}, {"dir", defaultACL, lists[2].kept},
		{"file", selinux, label}, {"dir", selinux, label}, {"file", "user.note", "text"}, {"file", "trusted.note", "text"},
	} {
		set(unix.Lsetxattr(filepath.Join(source, x.file), x.key, []byte(x.value), 0))
	}
	set(os.Lchown(filepath.Join(source, "owner"), 4_000_000_000, 4_294_967_294))
	set(os.Chtimes(filepath.Join(source, "old"), date, date.AddDate(-90, 0, 0)))
	set(os.Chtimes(filepath.Join(source, "late"), date, date.AddDate(60, 0, 0)))
	archive := filepath.Join(t.TempDir(), "root.tar")
	testkit.Run(t, "tar", "--acls", "--selinux", "--xattrs", "--xattrs-include=*", "-C", source, "-cf", archive, ".")
	for _, from := range []string{source, archive} {
		tree := newTree(t)
		if err := tree.Fill(t.Context(), from, "x86_64"); err != nil {
			t.Fatal(err)
		}
		set(tree.Seal(date.AddDate(100, 0, 0)))
		for _, x := range []struct{ file, key, value string }{
			{"file", accessACL, lists[0].kept}, {"dir", accessACL, lists[2].kept}, {"dir", defaultACL, lists[2].kept},
			{"file", selinux, label}, {"dir", selinux, label}, {"file", "user.note", "text"}, {"file", "trusted.note", "text"},
		} {
			if have := xattr(t, tree, x.file, x.key); have != x.value {
				t.Errorf("%s: %s of %s is %q, want %q", from, x.key, x.file, have, x.value)
			}
		}
		for name, want := range map[string]int64{"old": 0, "late": date.AddDate(60, 0, 0).Unix()} {
			if info, err := tree.Lstat(name); err != nil || info.ModTime().Unix() != want {
				t.Errorf("%s: %s is of %v, %v", from, name, info.ModTime(), err)
			}
		}
		if tree.BeforeEpoch() != "old" {
			t.Errorf("%s: the file from before 1970 is %q", from, tree.BeforeEpoch())
		}
		info, err := tree.Lstat("owner")
		set(err)
		if s := info.Sys().(*syscall.Stat_t); s.Uid != 4_000_000_000 || s.Gid != 4_294_967_294 {
			t.Errorf("%s: the owner is %d:%d", from, s.Uid, s.Gid)
		}
		if _, err := tree.Lstat(odd); err != nil {
			t.Error(err)
		}
		if name, err := tree.LongestName(); err != nil || name != long {
			t.Errorf("%s: the longest name is %q, %v", from, name, err)
		}
	}
}

// Some archivers write a list that is empty where a file has none. FAULTS 112
func TestEmptyACL(t *testing.T) {
	for _, value := range []string{"", "\n"} {
		h := &tar.Header{Name: "file", PAXRecords: map[string]string{"SCHILY.acl.access": value, "SCHILY.acl.default": value}}
		if xattrs, acls, err := xattrsOf(h); err != nil || len(xattrs) > 0 || len(acls) > 0 {
			t.Errorf("%q: %v, %v, %v", value, xattrs, acls, err)
		}
	}
}

func TestOwnersThatAreNone(t *testing.T) {
	for _, id := range []int{-1, maxID} {
		err := newTree(t).Put(Entry{Name: "file", Kind: Regular, UID: id}, strings.NewReader(""))
		if err == nil || !strings.Contains(err.Error(), "file: belongs to") {
			t.Errorf("owner %d: error %v", id, err)
		}
	}
}

// FAULTS 112
func TestReplaceKeepsTheRest(t *testing.T) {
	tree, err := fill(t, pack(t, header("lib", tar.TypeSymlink, linkTo("usr/lib")), header("usr/lib/file", tar.TypeReg, record("SCHILY.xattr.user.a", "b"), func(h *tar.Header) { h.Mode = 0o4751 })))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Replace("lib/file", []byte("other")); err != nil {
		t.Fatal(err)
	}
	text, readErr := tree.ReadFile("usr/lib/file", 100)
	info, err := tree.Lstat("usr/lib/file")
	if err != nil || readErr != nil || string(text) != "other" || info.Sys().(*syscall.Stat_t).Mode&0o7777 != 0o4751 || !info.ModTime().Equal(date) || xattr(t, tree, "usr/lib/file", "user.a") != "b" {
		t.Errorf("%q, %v, %v, %v, %v", text, info.Mode(), info.ModTime(), err, readErr)
	}
	if err := tree.Replace("usr/lib", nil); err == nil {
		t.Error("a directory got a content")
	}
}

// A list stays with what it is of, whatever had the name before and whichever name is left.
func TestListsOfReplacedNames(t *testing.T) {
	access, inherited := record("SCHILY.acl.access", lists[0].text), record("SCHILY.acl.default", lists[2].text)
	tree, err := fill(t, pack(t,
		header("dir", tar.TypeReg), header("dir", tar.TypeDir, inherited, access), // a directory in place of a file
		header("link", tar.TypeSymlink, linkTo("dir")), header("link", tar.TypeDir, inherited),
		header("first", tar.TypeReg, access), header("second", tar.TypeLink, linkTo("first")), header("third", tar.TypeLink, linkTo("second")),
		header("first", tar.TypeReg), // its other names keep the list
		header("second", tar.TypeDir)))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Seal(date); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, key, want string }{
		{"dir", defaultACL, lists[2].kept}, {"dir", accessACL, lists[0].kept}, {"link", defaultACL, lists[2].kept},
		{"first", accessACL, unix.ENODATA.Error()}, {"second", accessACL, unix.ENODATA.Error()}, {"third", accessACL, lists[0].kept},
	} {
		if have := xattr(t, tree, c.file, c.key); have != c.want {
			t.Errorf("%s of %s is %q, want %q", c.key, c.file, have, c.want)
		}
	}
}
