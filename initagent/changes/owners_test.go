package changes

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

const accessList = "system.posix_acl_access"

// aclOf lets users of these numbers read a file (acl(5), in the form of linux/posix_acl_xattr.h).
func aclOf(users ...uint32) []byte {
	const none = 0xffffffff
	list := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, perm uint16, n uint32) {
		list = binary.LittleEndian.AppendUint16(list, tag)
		list = binary.LittleEndian.AppendUint16(list, perm)
		list = binary.LittleEndian.AppendUint32(list, n)
	}
	add(0x01, 6, none) // owner
	for _, n := range users {
		add(0x02, 4, n)
	}
	add(0x04, 0, none) // group
	add(0x10, 4, none) // mask
	add(0x20, 0, none) // others
	return list
}

// A file is its tree's, of this user and group, with this mode.
func (b *box) of(tree, name string, user, group int, mode uint32) {
	b.t.Helper()
	b.must(os.Lchown(filepath.Join(tree, name), user, group))
	b.must(unix.Chmod(filepath.Join(tree, name), mode))
}

func (b *box) acl(tree, name string, users ...uint32) {
	b.t.Helper()
	err := unix.Setxattr(filepath.Join(tree, name), accessList, aclOf(users...), 0)
	if errors.Is(err, unix.ENOTSUP) {
		testkit.Skip(b.t, "the file system has no access control lists")
	}
	b.must(err)
}

func (b *box) isOf(name string, user, group, mode uint32, users ...uint32) {
	b.t.Helper()
	var st unix.Stat_t
	path := filepath.Join(b.merged, name)
	b.must(unix.Lstat(path, &st))
	if st.Uid != user || st.Gid != group || st.Mode&0o7777 != mode {
		b.t.Errorf("%s is %d:%d with mode %04o, want %d:%d and %04o", name, st.Uid, st.Gid, st.Mode&0o7777, user, group, mode)
	}
	list := make([]byte, 1024)
	switch n, err := unix.Getxattr(path, accessList, list); {
	case len(users) == 0 && err == nil, len(users) > 0 && !slices.Equal(list[:max(n, 0)], aclOf(users...)):
		b.t.Errorf("%s has the access control list %x, %v", name, list[:max(n, 0)], err)
	}
}

// renumbered is a machine on which svc, 990 in the image, is 999, and 990 is bob's; the image's
// gone, 980, is not here, and 980 is eve's.
func renumbered(t *testing.T) *box {
	t.Helper()
	testkit.Root(t, "give files away")
	b := newBox(t)
	b.file(b.image, "passwd", "root:x:0:0::/:/x\nsvc:x:990:990::/:/x\ngone:x:980:980::/:/x\n")
	b.file(b.image, "group", "root:x:0:\nsvc:x:990:\ngone:x:980:\n")
	b.file(b.merged, "passwd", "root:x:0:0::/:/x\nbob:x:990:990::/:/x\nsvc:x:999:999::/:/x\neve:x:980:980::/:/x\n")
	b.file(b.merged, "group", "root:x:0:\nbob:x:990:\nsvc:x:999:\neve:x:980:\n")
	return b
}

var accountsDiffer = []string{"changed /etc/group: content", "changed /etc/passwd: content"}

// A file that belongs here to the user that the image names is the image's, whatever their
// numbers are.
func TestListOwners(t *testing.T) {
	b := renumbered(t)
	for _, name := range []string{"key", "d/listed", "gone.tool", "raw", "mode"} {
		b.both(name, "x\n")
	}
	b.of(b.image, "key", 0, 990, 0o640)
	b.of(b.merged, "key", 0, 999, 0o640)
	b.of(b.image, "d", 990, 980, 0o2750)
	b.of(b.merged, "d", 999, 0, 0o2750)
	b.of(b.image, "gone.tool", 980, 0, 0o4755)
	b.of(b.merged, "gone.tool", 0, 0, 0o755)
	b.of(b.image, "mode", 980, 0, 0o4755)
	b.of(b.merged, "mode", 0, 0, 0o4755)
	b.of(b.image, "raw", 0, 990, 0o640)
	b.of(b.merged, "raw", 0, 990, 0o640)
	b.acl(b.image, "d/listed", 990, 980, 5)
	b.acl(b.merged, "d/listed", 999, 5)
	b.says(accountsDiffer[0],
		"changed /etc/mode: mode 4755, in the image 4755, which is 0755 here",
		accountsDiffer[1],
		"changed /etc/raw: owner 0:990, in the image 0:990, which is 0:999 here")
}

// What is given back belongs to the user that the image names, and not to the account that has the
// image's number here; so it does in directories other than /etc.
func TestResetOwners(t *testing.T) {
	b := renumbered(t)
	local := b.second("/usr/local")
	for _, in := range []*box{b, local} {
		in.both("d/file", "x\n")
		in.file(in.image, "d/gone.tool", "tool\n")
		in.of(in.image, "d", 0, 990, 0o2770)
		in.of(in.image, "d/file", 990, 990, 0o640)
		in.acl(in.image, "d/file", 990, 980, 5)
		in.of(in.image, "d/gone.tool", 980, 980, 0o6755)
	}
	b.reset("/etc/d")
	b.reset("/usr/local/d")
	for _, in := range []*box{b, local} {
		in.isOf("d", 0, 999, 0o2770)
		in.isOf("d/file", 999, 999, 0o640, 999, 5)
		in.isOf("d/gone.tool", 0, 0, 0o755)
	}
	b.says(accountsDiffer...)
}

// Of a directory that both changed, too.
func TestTakeTheirsOwners(t *testing.T) {
	b := renumbered(t)
	base := filepath.Join(t.TempDir(), "base")
	for tree, mode := range map[string]uint32{base: 0o755, b.image: 0o750, b.merged: 0o711} {
		b.file(tree, "d/file", "x\n")
		b.of(tree, "d", 0, 0, mode)
	}
	b.of(b.image, "d", 0, 990, 0o750)
	b.of(b.merged, "d", 0, 999, 0o711)
	b.merge(base)
	if r, err := b.m.TakeTheirs(t.Context(), "/etc/d"); err != nil || !slices.Equal(r.Given, []string{"/etc/d"}) {
		t.Errorf("%+v, %v", r, err)
	}
	b.isOf("d", 0, 999, 0o750)
}

// Where nobody knows whose numbers are whose, only what is root's is given back.
func TestResetOwnersUnknown(t *testing.T) {
	for name, set := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink("elsewhere", path) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"too large": func(path string) error { return os.WriteFile(path, make([]byte, 17<<20), 0o644) },
	} {
		b := renumbered(t)
		b.must(os.Remove(filepath.Join(b.merged, "group")))
		b.must(set(filepath.Join(b.merged, "group")))
		for _, name := range []string{"root", "svc", "acl"} {
			b.both(name, "x\n")
			b.file(b.merged, name, "mine\n")
		}
		b.of(b.image, "svc", 990, 0, 0o600)
		b.acl(b.image, "acl", 990)
		b.reset("/etc/root")
		for _, file := range []string{"/etc/svc", "/etc/acl"} {
			if r, err := b.m.Reset(t.Context(), file); err == nil || !strings.Contains(err.Error(), "whose number is whose on this machine is not known: /etc/group: ") || len(r.Given) > 0 {
				t.Errorf("%s, %s: %+v, %v", name, file, r, err)
			}
			b.isOf(strings.TrimPrefix(file, "/etc/"), 0, 0, 0o644)
		}
	}
}
