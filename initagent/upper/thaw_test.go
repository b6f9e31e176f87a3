package upper

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/subvolume"
)

// subvolumes makes empty ones.
func subvolumes(t testing.TB, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		at := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(at), 0o755))
		f, err := os.Open(filepath.Dir(at))
		must(t, err)
		must(t, errors.Join(subvolume.Create(int(f.Fd()), filepath.Base(at)), f.Close()))
	}
}

// readOnly makes subvolumes read-only.
func readOnly(t testing.TB, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		f, err := os.Open(filepath.Join(root, name))
		must(t, err)
		must(t, errors.Join(subvolume.Hold{ReadOnly: true}.Restore(int(f.Fd())), f.Close()))
	}
}

// No read-only subvolume keeps anything from a reset, no matter which directory was made one: one
// that is cleared, one around it, or that of the whole root partition. Cut before any change, the
// same call once more does the rest. FAULTS 115
func TestClearButReadOnly(t *testing.T) {
	mounted := testkit.Btrfs(t)
	want := map[string]string{"bind": "dir", "bind/home": "dir", "bind/home/letter": "=dear", "halogen": "dir", "halogen/keys": "=1", "halogen/shared": "dir", "halogen/shared/journal": "=1"}
	n := 0
	fresh := func(frozen []string) Store {
		n++
		s := Store{Root: filepath.Join(mounted, fmt.Sprint(n))}
		subvolumes(t, mounted, fmt.Sprint(n))
		subvolumes(t, s.Root, "bind", "bind/home", "bind/var", "halogen", "systems")
		lay(t, s.Root, map[string]string{"bind/home/letter": "=dear", "bind/var/x": "=1", "bind/plain/x": "=1", "halogen/keys": "=1", "halogen/shared/journal": "=1", "halogen/shared/fetch/x": "=1", "systems/a/x": "=1", "file": "=1"})
		readOnly(t, s.Root, frozen...)
		return s
	}
	clearOf := func(s Store, step func(string) error) error {
		stays, err := s.ClearBut(cleared, staysHome, step)
		if len(stays) > 0 {
			t.Errorf("it leaves %q", stays)
		}
		return err
	}
	all, steps := []string{"bind/var", "systems", "bind", "halogen", "."}, 0
	for _, frozen := range [][]string{{"bind"}, {"halogen"}, {"."}, all} {
		s := fresh(frozen)
		steps = 0
		must(t, clearOf(s, func(string) error { steps++; return nil }))
		if got := shown(t, s.Root); !maps.Equal(got, want) {
			t.Errorf("%q: there is %q, want %q", frozen, got, want)
		}
	}
	for cut := range steps {
		s, at := fresh(all), 0
		_, err := s.ClearBut(cleared, staysHome, func(string) error {
			if at++; at > cut {
				return errCut
			}
			return nil
		})
		if err == nil {
			t.Fatalf("cut %d: no error", cut)
		}
		must(t, clearOf(s, nil))
		if got := shown(t, s.Root); !maps.Equal(got, want) {
			t.Errorf("cut %d: there is %q, want %q", cut, got, want)
		}
	}
}

// Nor does one around what is disarmed keep a program's rights.
func TestDisarmInReadOnly(t *testing.T) {
	s := Store{Root: testkit.Btrfs(t)}
	subvolumes(t, s.Root, "bind")
	lay(t, s.Root, map[string]string{"bind/home/eve/shell": "=1"})
	shell := filepath.Join(s.Root, "bind/home/eve/shell")
	must(t, os.Chmod(shell, 0o755|os.ModeSetuid))
	readOnly(t, s.Root, "bind")
	left, err := s.Disarm("bind/home", nil, nil)
	must(t, err)
	if info, err := os.Lstat(shell); err != nil || len(left) > 0 || info.Mode() != 0o755 {
		t.Errorf("it is %v, %v; it leaves %q", info.Mode(), err, left)
	}
}

// Nor does a limit, which holds for root, too, nor does it keep a release from starting.
func TestUnlimited(t *testing.T) {
	btrfs := testkit.Need(t, "btrfs")
	limited := func(root string) {
		testkit.Run(t, btrfs, "quota", "enable", root)
		testkit.Run(t, btrfs, "quota", "rescan", "-w", root)
		testkit.Run(t, btrfs, "qgroup", "limit", "16K", "0/5", root)
		testkit.Run(t, "sync", "-f", root)
		if err := os.Mkdir(filepath.Join(root, "more"), 0o755); !errors.Is(err, unix.EDQUOT) {
			t.Fatalf("the limit refuses nothing: %v", err)
		}
	}
	s := Store{Root: testkit.Btrfs(t)}
	lay(t, s.Root, map[string]string{"bind/home/eve/shell": "=1"})
	shell := filepath.Join(s.Root, "bind/home/eve/shell")
	must(t, os.Chmod(shell, 0o755|os.ModeSetuid))
	limited(s.Root)
	left, err := s.Disarm("bind/home", nil, nil)
	must(t, err)
	if info, err := os.Lstat(shell); err != nil || len(left) > 0 || info.Mode() != 0o755 {
		t.Errorf("it is %v, %v; it leaves %q", info.Mode(), err, left)
	}
	limited(s.Root)
	must(t, s.RootsOwn("bind/home", 0o711, nil))
	limited(s.Root)
	d := newDisk(t, "")
	d.root, d.store = s.Root, s
	c := d.carry(Source{})
	c.Base = ""
	_, err = s.Carry(t.Context(), c)
	must(t, err)
	if found := d.states(); len(found) != 1 {
		t.Errorf("there is %q", found)
	}
}

// What a boot alone writes to gives way: a release starts, and its links go back, whatever
// root of the system before has frozen there. FAULTS 115
func TestCarryThaws(t *testing.T) {
	for _, flags := range []string{"+i", "+a"} {
		d := newDisk(t, Directory+"/"+hash("a"))
		chattr(t, flags, filepath.Join(d.root, Directory), filepath.Join(d.root, Bind), d.root)
		_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
		must(t, err)
		must(t, d.whole())
		chattr(t, flags, filepath.Join(d.root, Directory))
		was := shown(t, filepath.Join(d.root, Bind, "var"))["link"]
		must(t, d.store.GiveBack(hash("b"), d.base))
		if got := shown(t, filepath.Join(d.root, Bind, "var"))["link"]; got == was || len(d.store.readLinks(hash("b"))) > 0 {
			t.Errorf("%s: the link is %q and was %q; listed are %v", flags, got, was, d.store.readLinks(hash("b")))
		}
	}
}

// There need be no directory for the systems yet.
func TestCarryThawsTop(t *testing.T) {
	d := newDisk(t, "")
	chattr(t, "+i", filepath.Join(d.root, Bind), d.root)
	c := d.carry(Source{})
	c.Base = ""
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	if found := d.states(); len(found) != 1 {
		t.Errorf("there is %q", found)
	}
}

// On btrfs the directory of the systems may be a read-only subvolume.
func TestCarryThawsSubvolume(t *testing.T) {
	d := newDisk(t, "")
	d.root = testkit.Btrfs(t)
	d.store = Store{Root: d.root}
	subvolumes(t, d.root, Directory)
	lay(t, d.root, map[string]string{Directory + "/" + hash("c") + unfinished + "/x": "=1"})
	readOnly(t, d.root, Directory, ".")
	c := d.carry(Source{})
	c.Base = ""
	report, err := d.store.Carry(t.Context(), c)
	must(t, err)
	if found := d.states(); len(found) != 1 || len(report.LeftOut) > 0 {
		t.Errorf("there is %q, left out is %q", found, report.LeftOut)
	}
}

// Immutable directories within one another are not all open at once, either.
func TestDiscardDeepImmutable(t *testing.T) {
	testkit.Root(t, "set flags of files")
	d := newDisk(t, "")
	top := filepath.Join(d.root, "deep")
	must(t, os.Mkdir(top, 0o755))
	mkdirs(t, top, strings.Repeat("d/", 300))
	testkit.Run(t, "chattr", "-R", "+i", top)
	t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-i", d.root).Run() })
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: limit.Max}))
	must(t, d.store.Discard("deep", nil))
	if names, err := d.store.Names("."); err != nil || strings.Contains(strings.Join(names, " "), "deep") {
		t.Errorf("there is %q, %v", names, err)
	}
}
