package snapshot_test

import (
	"os"
	"path/filepath"
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
	r, err := snapshot.Take(s, record, entries)
	must(t, err)
	if len(r.Directories) != 2 || r.Missing != "" {
		t.Fatalf("record %+v", r)
	}
	write("two")
	n := snapshot.Note{System: one, Of: r.Taken, From: 2}
	for _, want := range []string{"one", "two", "one"} {
		text, err := n.Encode()
		must(t, err)
		must(t, s.Keep(note, text))
		out, err := snapshot.Restore(s, note, one, later)
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
		if r, err = snapshot.Take(s, record, entries); err != nil || r.Missing != "" {
			t.Fatalf("record %+v, %v", r, err)
		}
	}
	is(snapshot.Before+"/var/lib/db", "three")
	if info, err := os.Stat(filepath.Join(root, snapshot.Directory)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if said, err := snapshot.Tidy(s, note); err != nil || len(said) > 0 {
		t.Errorf("%q, %v", said, err)
	}
	if r, err := s.LinuxStore.Room(); err != nil || r.Size != 256<<20 || r.Free <= 0 || r.Free >= r.Size {
		t.Errorf("room %+v, %v", r, err)
	}
}

// room says that there is enough: the file systems of tests are small.
type room struct{ hw.LinuxStore }

func (room) Room() (snapshot.Room, error) {
	return snapshot.Room{Size: 1000 * mib, Free: 500 * mib}, nil
}
