package upper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/subvolume"
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
	left, err := d.store.Disarm("bind/home", nil, func(string) error { steps++; return nil })
	must(t, err)
	check(d, "done")
	if len(left) > 0 || steps < 4 {
		t.Errorf("%d steps; it leaves %q", steps, left)
	}
	for cut := range steps {
		d, at := fresh(), 0
		_, err := d.store.Disarm("bind/home", nil, func(string) error {
			if at++; at > cut {
				return errCut
			}
			return nil
		})
		if !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		_, err = d.store.Disarm("bind/home", nil, nil)
		must(t, err)
		check(d, "cut")
	}
}

// What lies too deep is root's alone, no matter who made it, and the number of such places keeps
// nothing from its end.
func TestDisarmTooDeep(t *testing.T) {
	testkit.Root(t, "it gives files to root")
	d := newDisk(t, Directory+"/"+hash("a"))
	last := "bind/home/" + strings.Repeat("d/", maxDepth)
	lay(t, d.root, map[string]string{last + "reached/shell": "=1"})
	must(t, unix.Chmod(filepath.Join(d.root, last, "reached/shell"), 0o4755))
	for i := range 3 * maxLeft {
		must(t, os.Mkdir(filepath.Join(d.root, last, fmt.Sprintf("%0200d", i)), 0o777))
	}
	looked := 0
	left, err := d.store.Disarm("bind/home", func(n int) { looked = n }, nil)
	must(t, err)
	if len(left) != maxLeft+1 || left[maxLeft] != fmt.Sprintf("and %d other places", 2*maxLeft+1) || len(strings.Join(left, "")) > maxLeft*2*maxLeftName {
		t.Errorf("it leaves %q", left)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(d.root, last, "reached"), &st))
	if st.Uid != 0 || st.Mode&0o7777 != 0o700 {
		t.Errorf("what lies too deep is %o of %d", st.Mode, st.Uid)
	}
	for i := range batch {
		must(t, os.WriteFile(filepath.Join(d.root, "bind/home", fmt.Sprint(i)), nil, 0o600))
	}
	if _, err := d.store.Disarm("bind/home", func(n int) { looked = n }, nil); err != nil || looked != batch {
		t.Errorf("after %d files it has said something last, %v", looked, err)
	}
}

// In a read-only subvolume no file says that it lies in one. It is read-only afterwards, too:
// it may be somebody's backup.
func TestDisarmSnapshot(t *testing.T) {
	d := newDisk(t, "")
	d.root = testkit.Btrfs(t)
	d.store = Store{Root: d.root}
	programs := []string{"bind/home/eve/a/b/shell", "shell", "bind/home/eve/frozen"}
	for _, name := range programs {
		lay(t, d.root, map[string]string{name: "=1"})
		must(t, unix.Chmod(filepath.Join(d.root, name), 0o4755))
	}
	chattr(t, "+i", filepath.Join(d.root, programs[2]))
	eve, err := os.Open(filepath.Join(d.root, "bind/home/eve"))
	must(t, err)
	defer eve.Close()
	// A snapshot of the whole, as snapper makes them.
	top, err := os.Open(d.root)
	must(t, err)
	defer top.Close()
	must(t, subvolume.Snapshot(int(top.Fd()), int(eve.Fd()), "before", true))
	left, err := d.store.Disarm("bind/home", nil, nil)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("it leaves %q", left)
	}
	for _, name := range []string{programs[0], programs[2], "bind/home/eve/before/" + programs[0], "bind/home/eve/before/" + programs[1], "bind/home/eve/before/" + programs[2]} {
		if info, err := os.Lstat(filepath.Join(d.root, name)); err != nil || info.Mode() != 0o755 {
			t.Errorf("%s is %v, %v", name, info.Mode(), err)
		}
	}
	before, err := os.Open(filepath.Join(eve.Name(), "before"))
	must(t, err)
	defer before.Close()
	if !subvolume.Held(int(before.Fd())).ReadOnly {
		t.Error("the snapshot can be written to afterwards")
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
	// What a running system has put in a directory's place is not a directory.
	lay(t, d.root, map[string]string{"bind/link": "->home", "bind/file": "=1"})
	for _, name := range []string{"bind/link", "bind/file"} {
		_, err := d.store.Disarm(name, nil, nil)
		if own := d.store.RootsOwn(name, 0o755, nil); !errors.Is(own, unix.ENOTDIR) || !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s: %v, %v", name, own, err)
		}
	}
}

// Directories within one another are not in memory with all of their names.
func TestDisarmFewNames(t *testing.T) {
	testkit.Root(t, "it gives files to root")
	d := newDisk(t, "")
	const levels, many = 10, 1000
	at := filepath.Join(d.root, "bind/home")
	for range levels {
		at = filepath.Join(at, "d")
		must(t, os.MkdirAll(at, 0o755))
		for i := range many {
			must(t, unix.Mknod(filepath.Join(at, fmt.Sprintf("%0254d", i)), unix.S_IFREG|0o600, 0))
		}
	}
	must(t, os.WriteFile(filepath.Join(at, "shell"), nil, 0o700))
	must(t, os.Chmod(filepath.Join(at, "shell"), 0o700|os.ModeSetuid))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, within := heap(), uint64(0)
	_, err := d.store.Disarm("bind/home", nil, func(what string) error {
		within = heap()
		return nil
	})
	must(t, err)
	if within == 0 || within > before+levels*many*255/4 {
		t.Errorf("%d bytes of memory at the program, %d before", within, before)
	}
}
