package upper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// What an owner has made immutable in a shared directory stays as it is, and is named.
func TestCarryLeavesImmutable(t *testing.T) {
	for _, c := range []struct{ flags, name, left string }{
		{"+a", "", `"/var/link": it should lead to "new", and stays: operation not permitted`},
		{"+i", "", `"/var/.updated": it should be removed, and stays: operation not permitted`},
		{"+i", ".updated", `"/var/.updated": it should be removed, and stays: operation not permitted`},
		{"+i", "lib", `"/var/lib/fresh": left out: operation not permitted`},
	} {
		d := newDisk(t, Directory+"/"+hash("a"))
		if c.flags == "+a" {
			must(t, os.Remove(filepath.Join(d.root, Bind, "var", updated)))
		}
		chattr(t, c.flags, filepath.Join(d.root, Bind, "var", c.name))
		report, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
		must(t, err)
		if left := strings.Join(report.LeftOut, "\n"); !strings.Contains(left, c.left) {
			t.Errorf("%s %q: left out: %s", c.flags, c.name, left)
		}
		if got := shown(t, filepath.Join(d.root, Bind, "var", "lib", "d")); got["y"] != "=2" {
			t.Errorf("%s %q: /var/lib/d has %q", c.flags, c.name, got)
		}
	}
}

// Nor does a user who owns a shared directory keep a release from starting by making it a
// read-only subvolume: what is new in it is named, and not there.
func TestCarryLeavesReadOnly(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	c := d.carry(Source{System: hash("a")})
	c.Step = func(what string) error {
		if what == "rename lib/fresh" {
			return syscall.EROFS
		}
		return nil
	}
	report, err := d.store.Carry(t.Context(), c)
	must(t, err)
	if left := strings.Join(report.LeftOut, "\n"); !strings.Contains(left, `"/var/lib/fresh": left out: read-only file system`) {
		t.Errorf("left out: %s", left)
	}
}

func TestGiveBackLeavesImmutable(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	chattr(t, "+i", filepath.Join(d.root, Bind, "var"))
	must(t, d.store.GiveBack(hash("b"), d.base))
	if links := d.store.readLinks(hash("b")); len(links) > 0 {
		t.Errorf("listed are %v", links)
	}
}

// What is new in a shared directory is flushed once, however much it is.
func TestCarryFlushesOnce(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	files := map[string]string{}
	for i := range 300 {
		files[fmt.Sprintf("var/app/%d/f%d", i/10, i)] = "=x"
		files[fmt.Sprintf("var/lib/d/f%d", i)] = "=x"
	}
	lay(t, d.image, files)
	c := d.carry(Source{System: hash("a")})
	flushes, renames, told := 0, 0, int64(0)
	c.Step = func(what string) error {
		if strings.HasPrefix(what, "flush "+temporary) {
			flushes++
		}
		if strings.HasPrefix(what, "rename app") {
			renames++
		}
		return nil
	}
	c.Progress = func(total int64) func(int64) { told = max(told, total); return func(int64) {} }
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	got := shown(t, filepath.Join(d.root, Bind))
	for name, want := range files {
		if got[name] != want {
			t.Errorf("%s is %q", name, got[name])
		}
	}
	if flushes > 2 || renames != 1 || told < 600 { // of the entries, and of the link
		t.Errorf("%d flushes, %d renames of a directory that is new, progress of %d entries", flushes, renames, told)
	}
}

// An entry whose place is on another subvolume is made beside it, with what lies in it.
func TestCarryApart(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	c := d.carry(Source{System: hash("a")})
	apart := true
	c.Step = func(what string) error {
		if what == "rename lib/fresh" && apart {
			apart = false
			return syscall.EXDEV
		}
		return nil
	}
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	must(t, d.whole())
}

// A user who owns a directory can give it more attributes than can be listed.
func TestCarryManyAttributes(t *testing.T) {
	testkit.Root(t, "set trusted.overlay attributes")
	shm, err := os.MkdirTemp("/dev/shm", "upper")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	t.Setenv("TMPDIR", shm)
	d := newDisk(t, Directory+"/"+hash("a"))
	etcOf := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
	for _, name := range []string{filepath.Join(d.root, Bind, "var/lib/d"), filepath.Join(etcOf, "added")} {
		for n := range 300 {
			if err := unix.Lsetxattr(name, fmt.Sprintf("user.%s%04d", strings.Repeat("x", 240), n), []byte("1"), 0); err != nil {
				testkit.Skip(t, "the kernel's tmpfs takes no user attributes (before Linux 6.6): "+err.Error())
			}
		}
		if _, err := unix.Llistxattr(name, make([]byte, maxXattrs)); !errors.Is(err, unix.E2BIG) {
			t.Fatalf("%v", err)
		}
	}
	must(t, unix.Lsetxattr(filepath.Join(etcOf, "added"), opaque, []byte("y"), 0))
	report, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	must(t, d.whole())
	if len(report.LeftOut) != 1 || !strings.Contains(report.LeftOut[0], `"/etc/added": its extended attributes are left out`) {
		t.Errorf("left out: %q", report.LeftOut)
	}
	if e, err := opened(t, etcOf, true).Entry("added"); err != nil || !e.Opaque || len(e.Xattrs) > 0 {
		t.Errorf("the directory is %+v, %v", e, err)
	}
}
