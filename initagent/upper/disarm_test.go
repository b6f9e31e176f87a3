package upper

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// No program that was put into what a reset keeps makes anybody root afterwards, no matter how
// it was put there; cut before any change, the same call once more does the rest.
func TestDisarm(t *testing.T) {
	testkit.Root(t, "it gives files to root and sets capabilities")
	const setuid = "\x01\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_setuid, version 2
	deep := "bind/home/" + strings.Repeat("d/", 100) + "shell"
	fresh := func() *disk {
		d := newDisk(t, Directory+"/"+hash("a"))
		lay(t, d.root, map[string]string{"bind/home/eve/shell": "=1", "bind/home/eve/able": "=1", "bind/home/eve/frozen": "=1", "bind/home/eve/text": "=1", deep: "=1", "bind/home/eve/link": "->/usr/bin/su"})
		for name, mode := range map[string]uint32{"bind/home/eve/shell": 0o6755, "bind/home/eve/frozen": 0o4711, deep: 0o2755, "bind/home/eve": 0o2775, "bind/home/eve/text": 0o640} {
			must(t, unix.Chmod(filepath.Join(d.root, name), mode))
		}
		must(t, unix.Setxattr(filepath.Join(d.root, "bind/home/eve/able"), capability, []byte(setuid), 0))
		chattr(t, "+i", filepath.Join(d.root, "bind/home/eve/frozen"))
		return d
	}
	check := func(d *disk, when string) {
		t.Helper()
		for name, want := range map[string]os.FileMode{
			"bind/home/eve/shell": 0o755, "bind/home/eve/frozen": 0o711, deep: 0o755, "bind/home/eve": os.ModeDir | os.ModeSetgid | 0o775, "bind/home/eve/text": 0o640,
		} {
			if info, err := os.Lstat(filepath.Join(d.root, name)); err != nil || info.Mode() != want {
				t.Errorf("%s: %s is %v, %v, want %v", when, name, info.Mode(), err, want)
			}
		}
		if n, err := unix.Getxattr(filepath.Join(d.root, "bind/home/eve/able"), capability, nil); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s: it has %d bytes of capabilities, %v", when, n, err)
		}
	}
	steps := 0
	d := fresh()
	left, err := d.store.Disarm("bind/home", func(string) error { steps++; return nil })
	must(t, err)
	check(d, "done")
	if len(left) > 0 || steps < 4 {
		t.Errorf("%d steps; it leaves %q", steps, left)
	}
	for cut := range steps {
		d, at := fresh(), 0
		_, err := d.store.Disarm("bind/home", func(string) error {
			if at++; at > cut {
				return errCut
			}
			return nil
		})
		if !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		_, err = d.store.Disarm("bind/home", nil)
		must(t, err)
		check(d, "cut")
	}
	lay(t, d.root, map[string]string{"bind/home/" + strings.Repeat("d/", maxDepth+2) + "x": "=1"})
	if left, err := d.store.Disarm("bind/home", nil); err != nil || len(left) != 1 || !strings.HasSuffix(left[0], "too deep to be looked into") {
		t.Errorf("it leaves %q, %v", left, err)
	}
}

// Whose directory it was does not matter afterwards.
func TestRootsOwn(t *testing.T) {
	testkit.Root(t, "it gives directories to others")
	d := newDisk(t, Directory+"/"+hash("a"))
	lay(t, d.root, map[string]string{"bind/home/x": "=1"})
	home := filepath.Join(d.root, "bind/home")
	must(t, errors.Join(os.Chown(home, 1000, 1000), os.Chmod(home, 0o777)))
	chattr(t, "+i", home)
	must(t, d.store.RootsOwn("bind/home", 0o755, nil))
	var st unix.Stat_t
	must(t, unix.Stat(home, &st))
	if st.Uid != 0 || st.Gid != 0 || st.Mode&0o7777 != 0o755 {
		t.Errorf("it is %o of %d:%d", st.Mode, st.Uid, st.Gid)
	}
	must(t, d.store.RootsOwn("bind/nothing", 0o755, nil))
}
