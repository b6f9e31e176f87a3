package hw

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/subvolume"
)

// written does with a store what a boot does: it has new content, and makes and removes what
// it has to.
func written(t *testing.T, l LinuxStore, image, when string) {
	t.Helper()
	for what, err := range map[string]error{
		"keep": l.Keep("halogen/esp/kept", []byte("new")), "keep at the top": l.Keep("halogen/phrase", []byte("new")), "remove": l.Remove("halogen/esp/removed"),
		"make": l.MakeDirectory("halogen/a/b", 0o700), "discard": l.Discard("halogen/old"), "seed": l.Seed(image, "bind/var", true), "seed elsewhere": l.Seed(image, "made/home", false),
	} {
		if err != nil {
			t.Errorf("%s: %s: %v", when, what, err)
		}
	}
	for _, name := range []string{"halogen/esp/kept", "halogen/phrase"} {
		if text, err := l.Read(name, 100); err != nil || string(text) != "new" {
			t.Errorf("%s: %s has %q, %v", when, name, text, err)
		}
	}
	for name, there := range map[string]bool{"halogen/a/b": true, "bind/var/file": true, "made/home/file": true, "halogen/esp/removed": false, "halogen/old": false, "halogen/esp/kept.new": false, "bind/var.new": false} {
		if _, err := os.Lstat(filepath.Join(l.Root, name)); (err == nil) != there {
			t.Errorf("%s: %s: %v", when, name, err)
		}
	}
}

var writable = map[string]string{
	"halogen/esp/kept": "old", "halogen/esp/kept.new": "cut", "halogen/esp/removed": "old", "halogen/phrase": "old", "halogen/old/x": "old", "bind/var.new/left": "cut", "bind/home/x": "old",
}

// Root of the running system can protect whatever it likes of what a boot writes. FAULTS 115
func TestStoreThaws(t *testing.T) {
	testkit.Root(t, "set flags of files")
	image := tree(t, map[string]string{"file": "content"})
	for _, flag := range []string{"i", "a"} {
		for _, frozen := range [][]string{
			{"halogen/esp/kept"}, {"halogen/esp/kept.new"}, {"halogen/esp/removed"}, {"halogen/old/x"}, {"bind/var.new/left"}, {"halogen/esp"}, {"halogen"}, {"bind"}, {"."},
			{"halogen/esp/kept", "halogen/esp/kept.new", "halogen/phrase", "halogen/esp", "halogen/old", "bind/var.new", "bind", "halogen", "."},
		} {
			l := LinuxStore{Root: tree(t, writable)}
			t.Cleanup(func() { _ = exec.Command("chattr", "-R", "-ia", l.Root).Run() })
			for _, name := range frozen {
				testkit.Run(t, "chattr", "+"+flag, filepath.Join(l.Root, name))
			}
			written(t, l, image, "+"+flag+" "+strings.Join(frozen, " "))
		}
	}
}

// Snapshots are made, moved and removed where a whole root partition is read-only. FAULTS 115
func TestSubvolumesThaw(t *testing.T) {
	l := LinuxStore{Root: testkit.Btrfs(t)}
	top, err := os.Open(l.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	for _, name := range []string{"bind", "snapshots/before"} {
		if err := os.MkdirAll(filepath.Join(l.Root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Seed(t.TempDir(), "bind/var", true); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"snapshot", func() error { return l.Snapshot("bind/var", "snapshots/before/var", true) }},
		{"rename", func() error { return l.Rename("bind/var", "snapshots/var") }},
		{"remove", func() error { return l.RemoveSubvolume("snapshots/before/var") }},
	} {
		if err := (subvolume.Hold{ReadOnly: true}).Restore(int(top.Fd())); err != nil {
			t.Fatal(err)
		}
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
	}
	for name, want := range map[string]subvolume.Kind{"bind/var": subvolume.Absent, "snapshots/var": subvolume.Subvolume, "snapshots/before/var": subvolume.Absent} {
		if kind, err := l.Look(name); err != nil || kind != want {
			t.Errorf("%s is of kind %d, %v", name, kind, err)
		}
	}
}

// A limit keeps no flag from going, and none from coming back, where a state of before takes the
// place of one that is protected. FAULTS 115
func TestReleaseUnlimited(t *testing.T) {
	btrfs := testkit.Need(t, "btrfs")
	l := LinuxStore{Root: testkit.Btrfs(t)}
	at := filepath.Join(l.Root, "bind/var")
	if err := errors.Join(os.Mkdir(filepath.Dir(at), 0o700), l.Seed(t.TempDir(), "bind/var", true)); err != nil {
		t.Fatal(err)
	}
	limit := func() {
		testkit.Run(t, btrfs, "quota", "enable", l.Root)
		testkit.Run(t, btrfs, "quota", "rescan", "-w", l.Root)
		testkit.Run(t, btrfs, "qgroup", "limit", "16K", at)
		testkit.Run(t, "sync", "-f", l.Root)
	}
	testkit.Run(t, "chattr", "+i", at)
	limit()
	held, err := l.Release("bind/var")
	if err != nil || held.Flags == 0 {
		t.Fatalf("it held %+v: %v", held, err)
	}
	limit()
	if err := l.Hold("bind/var", held); err != nil {
		t.Fatal(err)
	}
	if again, err := l.Release("bind/var"); err != nil || again != held {
		t.Errorf("it holds %+v, want %+v: %v", again, held, err)
	}
}

// On btrfs they can make a read-only subvolume of each directory, which only its top says. FAULTS 115
func TestStoreThawsSubvolumes(t *testing.T) {
	image := tree(t, map[string]string{"file": "content"})
	l := LinuxStore{Root: testkit.Btrfs(t)}
	open := func(name string) *os.File {
		f, err := os.Open(filepath.Join(l.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, name := range []string{"halogen", "halogen/esp", "bind", "bind/home"} {
		if err := subvolume.Create(int(open(filepath.Dir(name)).Fd()), filepath.Base(name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range writable {
		at := filepath.Join(l.Root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Run(t, "chattr", "+i", filepath.Join(l.Root, "halogen/esp/kept"))
	for _, name := range []string{"halogen/esp", "halogen", "bind/home", "bind", "."} {
		if err := (subvolume.Hold{ReadOnly: true}).Restore(int(open(name).Fd())); err != nil {
			t.Fatal(err)
		}
	}
	written(t, l, image, "read-only subvolumes")
	if !subvolume.Held(int(open("bind/home").Fd())).ReadOnly {
		t.Error("a subvolume that nothing was written to can be written to afterwards")
	}
}

// A limit on btrfs, which holds for root, keeps nothing from being written, made or removed, also
// where flags do, which cannot be changed under it. FAULTS 115
func TestStoreUnlimited(t *testing.T) {
	image := tree(t, map[string]string{"file": "content"})
	btrfs := testkit.Need(t, "btrfs")
	for _, frozen := range []string{"", "halogen/esp/kept"} {
		l := LinuxStore{Root: testkit.Btrfs(t)}
		for name, content := range writable {
			at := filepath.Join(l.Root, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if frozen != "" {
			testkit.Run(t, "chattr", "+i", filepath.Join(l.Root, frozen))
		}
		// The group of a group's limit counts, too.
		testkit.Run(t, btrfs, "quota", "enable", l.Root)
		testkit.Run(t, btrfs, "qgroup", "create", "1/7", l.Root)
		testkit.Run(t, btrfs, "qgroup", "assign", "0/5", "1/7", l.Root)
		testkit.Run(t, btrfs, "quota", "rescan", "-w", l.Root)
		testkit.Run(t, btrfs, "qgroup", "limit", "16K", "1/7", l.Root)
		testkit.Run(t, "sync", "-f", l.Root)
		if err := os.Mkdir(filepath.Join(l.Root, "more"), 0o755); !errors.Is(err, syscall.EDQUOT) {
			t.Fatalf("the limit refuses nothing: %v", err)
		}
		written(t, l, image, "a limit and "+frozen)
	}
}

// No link leads what is seeded, or mounted afterwards, out of the root partition. FAULTS 115
func TestSeedThroughNoLink(t *testing.T) {
	image, outside := tree(t, map[string]string{"file": "content"}), tree(t, map[string]string{"home.new/x": "stays"})
	l := LinuxStore{Root: tree(t, map[string]string{"linked": "->" + outside, "bind/home": "->" + outside, "bind/nowhere": "->/nowhere", "bind/file": "1"})}
	for _, name := range []string{"linked/home", "bind/home", "bind/nowhere", "bind/file", "bind/file/home"} {
		if err := l.Seed(image, name, false); !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), name+" has to be a directory") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(outside, "home.new/x")); err != nil || string(text) != "stays" {
		t.Errorf("%q, %v", text, err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
		t.Errorf("outside there is %v, %v", names, err)
	}
}
