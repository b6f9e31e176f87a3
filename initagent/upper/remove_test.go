package upper

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// chattr sets flags of files, and takes them off at the end.
func chattr(t *testing.T, flags string, names ...string) {
	t.Helper()
	testkit.Root(t, "set flags of files")
	for _, name := range names {
		testkit.Run(t, "chattr", flags, name)
		t.Cleanup(func() { _ = exec.Command("chattr", "-ia", name).Run() })
	}
}

// What an owner has made immutable goes with the state that it is in.
func TestDiscardImmutable(t *testing.T) {
	for _, frozen := range []string{"", "etc", "etc/upper/added", "etc/upper/ours", "etc/upper/added/x", "etc/work/index"} {
		for _, flags := range []string{"+i", "+a"} {
			d := newDisk(t, Directory+"/"+hash("a"))
			top := filepath.Join(d.root, Directory, hash("a"))
			lay(t, top, map[string]string{"etc/work/index/x": "=1"})
			chattr(t, flags, filepath.Join(top, frozen))
			if err := d.store.Discard(Directory+"/"+hash("a"), nil); err != nil {
				t.Errorf("%q %s: %v", frozen, flags, err)
			}
			if found := d.states(); len(found) > 0 {
				t.Errorf("%q %s: there is %q", frozen, flags, found)
			}
		}
	}
}

// Directories within one another are no limit: they are not all open at once.
func TestDiscardDeep(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	top := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
	mkdirs(t, top, strings.Repeat("d/", 1000))
	mkdirs(t, top, strings.Repeat("e/", 60))
	lay(t, top, map[string]string{strings.Repeat("e/", 45) + "1" + unfinished + "/x": "=1", strings.Repeat("e/", 40) + "f/" + strings.Repeat("g/", 20) + "x": "=1", "1" + unfinished: "=1"})
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: limit.Max}))
	must(t, d.store.Discard(Directory+"/"+hash("a"), nil))
	if found := d.states(); len(found) > 0 {
		t.Errorf("there is %q", found)
	}
}

// What a damaged file system does not let go keeps no system from its state: not the one
// that it was made for, nor another one.
func TestCarryBesideWhatStays(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	lay(t, filepath.Join(d.root, Directory), map[string]string{
		hash("c") + unfinished + "/damaged": "=1", hash("b") + unfinished + "/damaged": "=1", temporary + "/damaged": "=1",
	})
	damaged := func(what string) error {
		if what == "remove damaged" {
			return syscall.EIO
		}
		return nil
	}
	c := d.carry(Source{System: hash("a")})
	c.Step = damaged
	report, err := d.store.Carry(t.Context(), c)
	must(t, err)
	must(t, d.whole())
	left := strings.Join(report.LeftOut, "\n")
	if len(report.LeftOut) != 3 || !strings.Contains(left, `"/systems/`+hash("c")+unfinished+`": what is left of an earlier system`) || !strings.Contains(left, "input/output error") {
		t.Errorf("reported are %q", report.LeftOut)
	}
	for range 2 {
		must(t, d.store.Discard(Directory+"/"+hash("b"), damaged))
		lay(t, filepath.Join(d.root, Directory, hash("b")), map[string]string{"damaged": "=1"})
	}
	must(t, d.store.Discard(Directory+"/"+hash("b"), nil))
	if found := d.states(); !slices.Equal(found, []string{hash("a")}) {
		t.Errorf("there is %q", found)
	}
}

// A list of links is nothing but a name, where something else has it.
func TestGiveBackRemovesWhatHasTheName(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	list := filepath.Join(d.root, Directory, hash("b")+linked)
	lay(t, list, map[string]string{"x": "=1"})
	must(t, d.store.GiveBack(hash("b"), d.base))
	if _, err := os.Lstat(list); !os.IsNotExist(err) {
		t.Errorf("it is there still: %v", err)
	}
	lay(t, list, map[string]string{"x": "=1"})
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	must(t, d.whole())
	if links := d.store.readLinks(hash("b")); len(links) != 1 {
		t.Errorf("the list has %v", links)
	}
}
