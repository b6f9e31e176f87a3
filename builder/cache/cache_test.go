package cache

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

func mustOpen(t testing.TB, dir string) *Dir {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func put(t testing.TB, d *Dir, key Key, content string) string {
	t.Helper()
	if err := d.Put("thing", key, []byte(content)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(d.root.Name(), fileName("thing", key))
}

func TestEntries(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "new"))
	key := d.KeyOf([]byte("a"), []byte("bc"))
	put(t, d, key, "first")
	put(t, d, key, "second")
	if have, ok := d.Get("thing", key); !ok || string(have) != "second" {
		t.Errorf("have %q, %v", have, ok)
	}
	if _, ok := d.Get("other", key); ok {
		t.Error("an entry of one kind is one of another")
	}
	if other := d.KeyOf([]byte("ab"), []byte("c")); other == key {
		t.Error("parts that are divided otherwise have the same key")
	}
	if err := d.Put("thing", key, make([]byte, maxEntry)); err == nil {
		t.Error("an entry that is too large is kept")
	}
	if info, err := os.Stat(d.root.Name()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Whatever a power cut or a bad disk leaves of an entry, it is missing and not another one.
func TestDamaged(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "c"))
	key := d.KeyOf([]byte("x"))
	file := put(t, d, key, "no secret in it")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content []byte, what string, i int) {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if have, ok := d.Get("thing", key); ok {
			t.Errorf("%s %d: have %q", what, i, have)
		}
	}
	for i := range whole {
		write(whole[:i], "cut at", i)
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		write(changed, "changed at", i)
	}
	write(append(bytes.Clone(whole), 0), "longer", 1)
	write(append(bytes.Clone(whole[:len(whole)-4]), 0, 0, 0, 0), "zeros at the end", 4)
	// An entry under the name of another, as when somebody has moved it.
	other := d.KeyOf([]byte("y"))
	if err := os.WriteFile(filepath.Join(d.root.Name(), fileName("thing", other)), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if have, ok := d.Get("thing", other); ok {
		t.Errorf("moved: have %q", have)
	}
}

// What others could have written is not believed.
func TestOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for mode, want := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o775: false, 0o757: false, 0o1777: false} {
		if err := unix.Chmod(dir, uint32(mode)); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{dir, link} {
			d, err := Open(name)
			if (err == nil) != want || err != nil && !strings.Contains(err.Error(), "others than its owner can write it") {
				t.Errorf("mode %04o: %v", mode, err)
			}
			if d != nil {
				d.Close()
			}
		}
	}
	if _, err := Open(filepath.Join(dir, "no", "such")); err == nil {
		t.Error("a cache below nothing")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil {
		t.Error("a file is a cache")
	}
}

func TestOthersEntries(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "c"))
	key := d.KeyOf()
	file := put(t, d, key, "x")
	if err := os.Chmod(file, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Get("thing", key); ok {
		t.Error("an entry that others can write is believed")
	}
	for what, place := range map[string]func() error{
		"link":      func() error { return os.Symlink(put(t, d, d.KeyOf([]byte("y")), "x"), file) },
		"pipe":      func() error { return unix.Mkfifo(file, 0o600) },
		"directory": func() error { return os.Mkdir(file, 0o700) },
	} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := place(); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.Get("thing", key); ok {
			t.Errorf("a %s is an entry", what)
		}
	}
}

func TestAnotherOwner(t *testing.T) {
	testkit.Root(t, "it gives a directory to another user")
	dir := t.TempDir()
	if err := os.Chown(dir, 1000, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "belongs to the user 1000") {
		t.Errorf("error %v", err)
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "c"))
	d.most = 3 * int64(len(magic)+32+1000)
	content := strings.Repeat("x", 1000)
	var keys []Key
	for i := range 3 {
		keys = append(keys, d.KeyOf([]byte{byte(i)}))
		at := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(put(t, d, keys[i], content), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := d.Get("thing", keys[0]); !ok { // used now, and so the newest
		t.Fatal("it is not there")
	}
	foreign := filepath.Join(d.root.Name(), "README")
	stopped, running := filepath.Join(d.root.Name(), "new-SEVEN-"+fileName("thing", keys[0])), filepath.Join(d.root.Name(), "new-EIGHT-"+fileName("thing", keys[0]))
	for _, name := range []string{foreign, stopped, running} {
		if err := os.WriteFile(name, []byte(content+content+content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * leftover)
	for _, name := range []string{foreign, stopped} {
		if err := os.Chtimes(name, long, long); err != nil {
			t.Fatal(err)
		}
	}
	put(t, d, d.KeyOf([]byte("new")), content)
	for i, want := range []bool{true, false, true} {
		if _, ok := d.Get("thing", keys[i]); ok != want {
			t.Errorf("entry %d is there: %v", i, ok)
		}
	}
	for name, want := range map[string]bool{foreign: true, stopped: false, running: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "c"))
	one, two := d.KeyOf([]byte("1")), d.KeyOf([]byte("2"))
	first := d.Table("table")
	first.Put(one, []byte("eins"))
	first.Put(two, nil)
	first.Put(d.KeyOf(), make([]byte, maxValue+1))
	if err := first.Save(); err != nil {
		t.Fatal(err)
	}
	second := d.Table("table")
	if v, ok := second.Get(one); !ok || string(v) != "eins" {
		t.Errorf("have %q, %v", v, ok)
	}
	if v, ok := second.Get(two); !ok || len(v) != 0 {
		t.Errorf("have %q, %v", v, ok)
	}
	if _, ok := second.Get(d.KeyOf()); ok {
		t.Error("a value that is too long was kept")
	}
	if _, ok := d.Table("other").Get(one); ok {
		t.Error("a value of one table is in another")
	}
}

// What a build has not used makes way before what it has.
func TestTableIsBounded(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, filepath.Join(t.TempDir(), "c"))
	key := func(i int) Key { return d.KeyOf([]byte{byte(i), byte(i >> 8)}) }
	large := make([]byte, maxValue)
	first := d.Table("table")
	const most = maxTable / (maxValue + record)
	for i := range most {
		first.Put(key(i), large)
	}
	if err := first.Save(); err != nil {
		t.Fatal(err)
	}
	second := d.Table("table")
	for i := range most - 1 { // all but one
		if _, ok := second.Get(key(i)); !ok {
			t.Fatalf("value %d is missing", i)
		}
	}
	second.Put(key(most), large)
	if err := second.Save(); err != nil {
		t.Fatal(err)
	}
	third := d.Table("table")
	for i := range most + 1 {
		if _, ok := third.Get(key(i)); ok != (i != most-1) {
			t.Errorf("value %d is there: %v", i, ok)
		}
	}
}

// Builds at the same time leave one whole table, and may delete what they like.
func TestAtTheSameTime(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "c")
	var all sync.WaitGroup
	for i := range 8 {
		d := mustOpen(t, dir)
		all.Go(func() {
			for n := range 20 {
				table := d.Table("table")
				table.Put(d.KeyOf([]byte{byte(i), byte(n)}), []byte("x"))
				if err := table.Save(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	d := mustOpen(t, dir)
	if content, ok := d.Get("table", d.KeyOf([]byte("table"))); !ok {
		t.Error("no table is left")
	} else if _, _, err := parseTable(content); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.Table("table").Save(); err == nil {
		t.Error("a table is kept in a directory that is gone")
	}
}

func FuzzTable(f *testing.F) {
	table := Table{values: map[Key]value{{1}: {2, []byte("three")}, {4}: {5, nil}}, build: 6}
	f.Add(table.encode())
	f.Add([]byte{1, 0, 0, 0})
	table.build = table.values[Key{1}].used + maxAge + 1 // which is too old, and the other is not
	f.Add(table.encode())
	f.Fuzz(func(t *testing.T, content []byte) {
		build, values, err := parseTable(content)
		if err != nil {
			return
		}
		maps.DeleteFunc(values, func(_ Key, v value) bool { return build-v.used > maxAge })
		again, same, err := parseTable((&Table{values: values, build: build}).encode())
		if err != nil || again != build || len(same) != len(values) {
			t.Errorf("%d values of build %d that are not too old, then %d of %d, %v", len(values), build, len(same), again, err)
		}
	})
}
