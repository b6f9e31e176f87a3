package upper

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/testkit"
)

var cleared = []string{".", Bind, "halogen/shared"}

func staysHome(name string) bool {
	return name == "halogen" || name == "bind/home" || name == "halogen/shared/journal"
}

// All goes but what stays, whatever it is and no matter who made it immutable; cut before any change of
// the file system, the same call once more does the rest.
func TestClearBut(t *testing.T) {
	fresh := func() *disk {
		d := newDisk(t, Directory+"/"+hash("a"))
		lay(t, d.root, map[string]string{
			"bind/home/anna/letter": "=dear", "bind/home/new.unfinished": "=mine", "overlay/etc/upper/x": "=1", "file": "=1", "link": "->halogen", "halogen/keys": "=1", "halogen/shared/journal": "=1", "halogen/shared/setup.json": "=1", "halogen/shared/fetch/x": "=1",
			"bind/to": "->home", "bind/left" + unfinished + "/x": "=1", "bind/old/" + strings.Repeat("d/", 50) + "x": "=1",
		})
		return d
	}
	want := map[string]string{"bind": "dir", "bind/home": "dir", "bind/home/anna": "dir", "bind/home/anna/letter": "=dear", "bind/home/new.unfinished": "=mine", "halogen": "dir", "halogen/keys": "=1", "halogen/shared": "dir", "halogen/shared/journal": "=1"}
	check := func(d *disk, when string) {
		t.Helper()
		if got := shown(t, d.root); !maps.Equal(got, want) {
			t.Errorf("%s: there is %q, want %q", when, got, want)
		}
	}
	steps := 0
	d := fresh()
	stays, err := d.store.ClearBut(cleared, staysHome, func(string) error { steps++; return nil })
	must(t, err)
	check(d, "done")
	if len(stays) > 0 || steps < 20 {
		t.Errorf("%d steps; it leaves %q", steps, stays)
	}
	for cut := range steps {
		d := fresh()
		at := 0
		_, err := d.store.ClearBut(cleared, staysHome, func(what string) error {
			if strings.HasPrefix(what, "remove ") {
				names, err := os.ReadDir(d.root)
				must(t, err)
				if slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() == "overlay" || e.Name() == Directory }) {
					t.Fatal("something goes while other things have their names")
				}
			}
			if at++; at > cut {
				return errCut
			}
			return nil
		})
		if !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		_, err = d.store.ClearBut(cleared, staysHome, nil)
		must(t, err)
		check(d, "cut")
	}
}

func TestClearButImmutable(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	lay(t, d.root, map[string]string{"bind/home/x": "=1"})
	chattr(t, "+i", filepath.Join(d.root, "bind/var/kept"), filepath.Join(d.root, "bind/var"))
	stays, err := d.store.ClearBut(cleared, staysHome, nil)
	must(t, err)
	if names, err := d.store.Names(Bind); err != nil || len(stays) > 0 || !slices.Equal(names, []string{"home"}) {
		t.Errorf("there is %q, %v; it leaves %q", names, err, stays)
	}
}

// Neither a long name nor a directory around it that is immutable keeps anything, nor are
// there too many names.
func TestClearButObstacles(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	long := strings.Repeat("n", 255)
	files := map[string]string{"bind/home/x": "=1", long: "=1", "bind/" + long + "/x": "=1", "bind/" + long[:250]: "=1", "a\nb\x1b/x": "=1"}
	for i := range 2*batch + 1 {
		files[fmt.Sprintf("bind/var/many/%d", i)] = "=1"
	}
	lay(t, d.root, files)
	chattr(t, "+i", filepath.Join(d.root, "bind"), d.root)
	stays, err := d.store.ClearBut(cleared, staysHome, nil)
	must(t, err)
	names, err := d.store.Names(Bind)
	top, terr := d.store.Names(".")
	slices.Sort(top)
	if err != nil || terr != nil || len(stays) > 0 || !slices.Equal(names, []string{"home"}) || !slices.Equal(top, []string{"bind", "halogen"}) {
		t.Errorf("there is %q and %q, %v, %v; it leaves %q", top, names, err, terr, stays)
	}
}

// However many of the names are taken that something gets before it goes, it goes, and they do.
func TestNamesAsideTaken(t *testing.T) {
	taken := func(dir string) *disk {
		d := newDisk(t, "")
		files := map[string]string{"bind/home/x": "=1", path.Join(dir, "gone/x"): "=1"}
		for n := range uint64(1200) {
			files[path.Join(dir, asideName("gone", n+1))] = "=1"
		}
		lay(t, d.root, files)
		return d
	}
	d := taken("bind")
	stays, err := d.store.ClearBut(cleared, staysHome, nil)
	must(t, err)
	if names, err := d.store.Names(Bind); err != nil || len(stays) > 0 || !slices.Equal(names, []string{"home"}) {
		t.Errorf("there are %d names in it, %v; it leaves %q", len(names), err, stays)
	}
	d = taken("halogen/own")
	must(t, d.store.Discard("halogen/own/gone", nil))
	if names, err := d.store.Names("halogen/own"); err != nil || len(names) > 0 {
		t.Errorf("there are %d names, %v", len(names), err)
	}
}

// A directory is not in memory with all of its names before any of it goes.
func TestDiscardReadsInBatches(t *testing.T) {
	d := newDisk(t, "")
	files := map[string]string{}
	for i := range 2 * batch {
		files[fmt.Sprintf("big/%d", i)] = "=1"
	}
	lay(t, d.root, files)
	late := false
	must(t, d.store.Discard("big", func(what string) error {
		if strings.HasPrefix(what, "remove ") && !late {
			late = true
			return os.WriteFile(filepath.Join(d.root, "big"+unfinished, "late"), nil, 0o600)
		}
		return nil
	}))
	if names, err := d.store.Names("."); err != nil || !late || slices.Contains(names, "big"+unfinished) {
		t.Errorf("there is %q, %v", names, err)
	}
}

// The account files are those that the system sees.
func TestAccounts(t *testing.T) {
	testkit.Root(t, "make a whiteout")
	d := newDisk(t, Directory+"/"+hash("a"))
	lay(t, d.image, map[string]string{"etc/group": "=g:x:1:\n", "etc/shadow": "=s", "etc/subuid": "=theirs"})
	lay(t, filepath.Join(d.root, own(hash("a"), "etc", "upper")), map[string]string{"shadow": "gone", "subuid": "->/etc/passwd", "gshadow": "=mine"})
	got, err := d.store.Accounts(Source{System: hash("a")}, d.image)
	must(t, err)
	want := map[string]string{"passwd": "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n", "group": "g:x:1:\n", "gshadow": "mine"}
	found := map[string]string{}
	for file, text := range got {
		found[file] = string(text)
	}
	if !maps.Equal(found, want) {
		t.Errorf("they are %q, want %q", found, want)
	}
	for _, from := range []Source{{}, {System: hash("f")}} {
		if got, err := d.store.Accounts(from, d.image); err != nil || !strings.Contains(string(got["passwd"]), "d:x:999") || string(got["shadow"]) != "s" {
			t.Errorf("%v: they are %q, %v", from, got, err)
		}
	}
}

// A system that takes over nothing gets the accounts that were kept; all else of its /etc is
// the image's.
func TestCarryPeople(t *testing.T) {
	testkit.Root(t, "give files to others")
	d := newDisk(t, "")
	people, _ := etcmerge.PeopleOf(map[string][]byte{
		"passwd": []byte("me:x:1000:1000::/home/me:/bin/sh\nyou:x:999:999::/home/you:/bin/sh\n"), "shadow": []byte("me:$6$x:1::::::\n"),
	})
	c := d.carry(Source{})
	c.People, c.Base = people, ""
	report, err := d.store.Carry(t.Context(), c)
	must(t, err)
	upper := filepath.Join(d.root, own(hash("b"), "etc", "upper"))
	want := map[string]string{"passwd": "=root:x:0:0::/root:/bin/sh\nd:x:999:999::/:/bin/false\nme:x:1000:1000::/home/me:/bin/sh\n", "shadow": "=me:$6$x:1::::::\n"}
	if got := shown(t, upper); !maps.Equal(got, want) || len(report.Conflicts) > 0 {
		t.Errorf("/etc has %q, want %q; %+v", got, want, report)
	}
	if info, err := os.Stat(filepath.Join(upper, "shadow")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("shadow: %v, %v", info.Mode(), err)
	}
}
