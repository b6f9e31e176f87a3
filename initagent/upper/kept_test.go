package upper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// A file of holes takes no room, and has its length and what lies between them.
func TestCarrySparse(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	big := filepath.Join(d.root, Directory, hash("a"), "etc/upper/big")
	f, err := os.Create(big)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 1<<38)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 1<<20), 1<<39)
	must(t, err)
	must(t, f.Truncate(1<<40))
	must(t, f.Close())
	_, err = d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	f, err = os.Open(filepath.Join(d.root, own(hash("b"), "etc", "upper"), "big"))
	must(t, err)
	defer f.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	text := make([]byte, 6)
	if _, err := f.ReadAt(text, 1<<38); err != nil || string(text) != "middle" || st.Size != 1<<40 || st.Blocks > 1000 {
		t.Errorf("it has %d bytes in %d blocks, and %q, %v", st.Size, st.Blocks, text, err)
	}
}

// A file whose access control list cannot be set gives its group no more than before.
func TestCarryWithoutAccessList(t *testing.T) {
	const list = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\xfe\xff\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	d := newDisk(t, Directory+"/"+hash("a"))
	must(t, unix.Lsetxattr(filepath.Join(d.root, Directory, hash("a"), "etc/upper/ours"), accessList, []byte(list), 0))
	c := d.carry(Source{System: hash("a")})
	c.Step = func(what string) error {
		if strings.HasPrefix(what, "attribute "+accessList) {
			return unix.ENOSPC
		}
		return nil
	}
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	info, err := os.Stat(filepath.Join(d.root, own(hash("b"), "etc", "upper"), "ours"))
	if must(t, err); info.Mode() != 0o640 {
		t.Errorf("its mode is %v", info.Mode())
	}
	for _, c := range []struct {
		list string
		want uint32
	}{{list, 0o4640}, {"", 0o4600}, {list[:23], 0o4600}, {list[:28], 0o4640}} {
		if got := withoutList(0o4660, c.list); got != c.want {
			t.Errorf("%q: %o", c.list, got)
		}
	}
}

// What chattr made of a file or directory through the overlay stays with what is kept.
func TestCarryKeepsFlags(t *testing.T) {
	testkit.Root(t, "set trusted.overlay attributes")
	d := newDisk(t, Directory+"/"+hash("a"))
	etcOf := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
	lay(t, etcOf, map[string]string{"theirs": "=mine"}) // a conflict
	for _, name := range []string{"ours", "theirs", "added", "."} {
		must(t, unix.Lsetxattr(filepath.Join(etcOf, name), protected, []byte("i"), 0))
	}
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	for _, name := range []string{"ours", "theirs", "added", "."} {
		if _, err := unix.Lgetxattr(filepath.Join(d.root, own(hash("b"), "etc", "upper"), name), protected, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two names of one file are two names again.
func TestCarryHardLinks(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	etcOf := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
	must(t, os.Link(filepath.Join(etcOf, "ours"), filepath.Join(etcOf, "second")))
	must(t, os.Link(filepath.Join(etcOf, "ours"), filepath.Join(etcOf, "added/third")))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	top := filepath.Join(d.root, own(hash("b"), "etc", "upper"))
	for _, name := range []string{"ours", "second", "added/third"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(top, name), &st))
		if st.Nlink != 3 || shown(t, top)[name] != "=2" {
			t.Errorf("%s has %d names", name, st.Nlink)
		}
	}
}
