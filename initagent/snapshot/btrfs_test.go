package snapshot_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/snapshot"
)

// The same story on a real btrfs: made, taken, put back, undone, replaced.
func TestOnBtrfs(t *testing.T) {
	root := testkit.Btrfs(t)
	s := room{hw.LinuxStore{Root: root}}
	image := t.TempDir()
	for name, text := range map[string]string{"var/lib/db": "one", "root/x": "one", "home/me": "one"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(image, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(image, name), []byte(text), 0o600))
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(image, e.Path)); err == nil {
			must(t, s.Seed(filepath.Join(image, e.Path), "bind"+e.Path, e.GoesBack()))
		}
	}
	must(t, s.MakeDirectory("shared", 0o755))
	is := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	write := func(text string) {
		for _, name := range []string{"bind/var/lib/db", "bind/root/x", "bind/home/me"} {
			must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
		}
	}
	r, _, err := snapshot.Take(s, record, entries, always)
	must(t, err)
	if len(r.Directories) != 2 || r.Missing != "" {
		t.Fatalf("record %+v", r)
	}
	write("two")
	n := snapshot.Note{System: one, Version: 1, Of: r.Taken, From: 2}
	for _, want := range []string{"one", "two", "one"} {
		text, err := n.Encode()
		must(t, err)
		must(t, s.Keep(note, text))
		out, err := snapshot.Restore(s, note, firstSystem, later)
		must(t, err)
		if out.Declined != "" || out.Warning != "" {
			t.Fatalf("%+v", out)
		}
		is("bind/var/lib/db", want)
		is("bind/root/x", want)
		is("bind/home/me", "two")
		is(snapshot.Before+"/var/lib/db", "one")
		n.Undo, n.Of = true, later.Truncate(time.Second)
	}
	must(t, os.WriteFile(filepath.Join(root, "bind/var/lib/db"), []byte("can be written to"), 0o600))
	write("three")
	for range 2 {
		if r, _, err = snapshot.Take(s, record, entries, always); err != nil || r.Missing != "" {
			t.Fatalf("record %+v, %v", r, err)
		}
	}
	is(snapshot.Before+"/var/lib/db", "three")
	if info, err := os.Stat(filepath.Join(root, snapshot.Directory)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if said, err := snapshot.Tidy(s, note, running); err != nil || len(said.Gone)+len(said.Tight) > 0 {
		t.Errorf("%q, %v", said, err)
	}
	if r, err := s.LinuxStore.Room(); err != nil || r.Size != testkit.BtrfsSize || r.Free <= 0 || r.Free >= r.Size {
		t.Errorf("room %+v, %v", r, err)
	}
}

// room says that there is enough: the file systems of tests are small.
type room struct{ hw.LinuxStore }

func (room) Room() (snapshot.Room, error) {
	return snapshot.Room{Size: 1000 * mib, Free: 500 * mib}, nil
}

func (r room) AwaitRoom(func(snapshot.Room) bool) (snapshot.Room, error) { return r.Room() }

// What chattr and read-only subvolumes hold on a real btrfs goes back, goes aside and goes
// away, with the subvolumes of others in it.
func TestHeldOnBtrfs(t *testing.T) {
	root := testkit.Btrfs(t)
	s := room{hw.LinuxStore{Root: root}}
	chattr, btrfs := testkit.Need(t, "chattr"), testkit.Need(t, "btrfs")
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, s.MakeDirectory("shared", 0o755))
	for _, d := range []string{"var", "root", "srv", "opt"} {
		must(t, os.MkdirAll(at("bind"), 0o755))
		testkit.Run(t, btrfs, "-q", "subvolume", "create", at("bind/"+d))
		must(t, os.WriteFile(at("bind/"+d+"/x"), []byte("one"), 0o600))
	}
	testkit.Run(t, btrfs, "-q", "subvolume", "create", at("bind/var/theirs"))
	must(t, os.MkdirAll(at("bind/var/theirs/a/b"), 0o755))
	testkit.Run(t, btrfs, "property", "set", at("bind/var/theirs"), "ro", "true")
	testkit.Run(t, chattr, "+i", at("bind/srv"))
	testkit.Run(t, chattr, "+a", at("bind/opt"))
	r, _, err := snapshot.Take(s, record, entries, always)
	if must(t, err); len(r.Directories) != 4 {
		t.Fatalf("record %+v", r)
	}
	must(t, os.WriteFile(at("bind/var/x"), []byte("two"), 0o600))
	testkit.Run(t, chattr, "+i", at("bind/root"))
	testkit.Run(t, btrfs, "property", "set", at("bind/opt"), "ro", "true")
	n := snapshot.Note{System: one, Version: 1, Of: r.Taken, From: 2}
	must(t, snapshot.Prepare(s, n))
	for _, frozen := range []string{"bind", "snapshots"} {
		testkit.Run(t, chattr, "+i", at(frozen))
	}
	for range 2 {
		text, err := n.Encode()
		must(t, err)
		must(t, s.Keep(note, text))
		got, err := snapshot.Restore(s, note, firstSystem, later)
		if must(t, err); got.Declined != "" || got.Warning != "" {
			t.Fatalf("%+v", got)
		}
		n.Undo, n.Of = true, later.UTC().Truncate(time.Second)
	}
	for name, want := range map[string]bool{"bind/root": true, "snapshots/aside-b/root": false, "bind/srv": true, "snapshots/aside-b/srv": true} {
		if out := testkit.Run(t, testkit.Need(t, "lsattr"), "-d", at(name)); strings.Contains(string(out), "i-") != want {
			t.Errorf("%s has %s", name, out)
		}
	}
	for range 3 {
		if r, _, err := snapshot.Take(s, record, entries, always); err != nil || r.Missing != "" {
			t.Fatalf("record %+v, %v", r, err)
		}
	}
	must(t, snapshot.Forget(s, note))
	for _, d := range []string{snapshot.Before, snapshot.Left, "snapshots/next", "snapshots/aside-a", "snapshots/aside-b"} {
		if names, err := s.Names(d); err != nil || len(names) > 0 {
			t.Errorf("%s has %q, %v", d, names, err)
		}
	}
	// As a reset deletes them.
	must(t, s.Discard("bind/var"))
	must(t, s.Discard("bind/opt"))
	if names, err := s.Names("bind"); err != nil || len(names) != 2 {
		t.Errorf("bind has %q, %v", names, err)
	}
}
