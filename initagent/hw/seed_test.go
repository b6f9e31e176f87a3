package hw

import (
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/subvolume"
)

// A directory that is seeded on btrfs is a subvolume where that is wanted, looks like the
// image's, and stays what it is; so it does where a cut has left a part of one.
func TestSeedSubvolume(t *testing.T) {
	image := tree(t, map[string]string{"var/lib/file": "content", "var/link": "->lib"})
	from := filepath.Join(image, "var")
	if err := os.Chmod(from, 0o750); err != nil {
		t.Fatal(err)
	}
	store := LinuxStore{Root: testkit.Btrfs(t)}
	if err := os.Mkdir(filepath.Join(store.Root, "bind"), 0o755); err != nil {
		t.Fatal(err)
	}
	bind, err := os.Open(filepath.Join(store.Root, "bind"))
	if err != nil {
		t.Fatal(err)
	}
	defer bind.Close()
	if err := subvolume.Create(int(bind.Fd()), "var.new"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store.Root, "bind/var.new/left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]subvolume.Kind{"var": subvolume.Subvolume, "home": subvolume.Directory} {
		for range 2 {
			if err := store.Seed(from, "bind/"+name, want == subvolume.Subvolume); err != nil {
				t.Fatal(err)
			}
		}
		if kind, err := subvolume.Look(int(bind.Fd()), name); err != nil || kind != want {
			t.Errorf("%s is of kind %d, %v; want %d", name, kind, err, want)
		}
		info, err := os.Stat(filepath.Join(store.Root, "bind", name))
		if err != nil || info.Mode().Perm() != 0o750 {
			t.Errorf("%s is %v, %v", name, info.Mode(), err)
		}
		if text, err := os.ReadFile(filepath.Join(store.Root, "bind", name, "link/file")); err != nil || string(text) != "content" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if names, err := os.ReadDir(bind.Name()); err != nil || len(names) != 2 {
		t.Errorf("there is %q, %v", names, err)
	}
}

// Elsewhere than on btrfs it is a directory.
func TestSeedElsewhere(t *testing.T) {
	image := tree(t, map[string]string{"var/file": "content"})
	store := LinuxStore{Root: t.TempDir()}
	if err := store.Seed(filepath.Join(image, "var"), "bind/var", true); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(store.Root, "bind/var/file")); err != nil || string(text) != "content" {
		t.Errorf("%q, %v", text, err)
	}
}
