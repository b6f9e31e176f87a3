package hw

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The running system writes to the directory that Read is used on. FAULTS 12, 80
func TestStoreRead(t *testing.T) {
	root := tree(t, map[string]string{
		"a/file": "content", "a/empty": "", "outside": "secret", "a/link": "->file", "b": "->a", "a/out": "->../outside", "a/nowhere": "->none",
	})
	for name, make := range map[string]func(string) error{
		"a/pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a/directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"a/large":     func(p string) error { return os.WriteFile(p, []byte("12345678"), 0o600) },
		"a/socket":    func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) },
	} {
		if err := make(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	store := LinuxStore{Root: filepath.Join(root)}
	for name, want := range map[string]string{"a/file": "content", "a/empty": ""} {
		if got, err := store.Read(name, 7); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{
		"a/none": fs.ErrNotExist, "none/none": fs.ErrNotExist, "a/link": ErrUnfit, "b/file": ErrUnfit, "a/out": ErrUnfit, "a/nowhere": ErrUnfit,
		"a/pipe": ErrUnfit, "a/directory": ErrUnfit, "a/large": ErrUnfit, "a/socket": ErrUnfit, "a/file/file": ErrUnfit, "../x": unix.EXDEV, "/etc/passwd": unix.EXDEV,
	} {
		done := make(chan error)
		go func() {
			_, err := store.Read(name, 7)
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it waits", name)
		}
	}
}

func TestStoreRemove(t *testing.T) {
	root := tree(t, map[string]string{"a/file": "content", "target": "stays", "a/link": "->../target", "b": "->."})
	store := LinuxStore{Root: root}
	for _, name := range []string{"a/file", "a/file", "a/link", "none/none"} {
		if err := store.Remove(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(root, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there still (%v)", name, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "target")); err != nil || string(b) != "stays" {
		t.Errorf("target: %q, %v", b, err)
	}
	for _, name := range []string{"b/target", "../x"} {
		if err := store.Remove(name); err == nil {
			t.Errorf("%s was removed: behind a link, or outside", name)
		}
	}
}

// Want of room says of what, and what to do.
// What is written to the root partition does not leave it by a link that the running system
// has left on the way.
func TestStoreWritesThroughNoLink(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	l := LinuxStore{Root: root}
	for name, to := range map[string]string{"absolute": outside, "relative": "../" + filepath.Base(outside), "inside": "real", "nowhere": "/nowhere"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.MakeDirectory("real/below", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Keep("real/below/file", []byte("x")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"absolute", "relative", "inside", "nowhere", "real/below/file"} {
		if err := l.Keep(name+"/file", []byte("x")); !errors.Is(err, ErrUnfit) {
			t.Errorf("Keep through %s: %v", name, err)
		}
		for _, below := range []string{name, name + "/a/b"} {
			if err := l.MakeDirectory(below, 0o700); !errors.Is(err, ErrUnfit) {
				t.Errorf("MakeDirectory %s: %v", below, err)
			}
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there is %v, %v", left, err)
	}
}

func TestFull(t *testing.T) {
	for err, full := range map[error]bool{unix.ENOSPC: true, unix.EDQUOT: true, unix.EIO: false} {
		if got := Full(&fs.PathError{Op: "write", Path: "x", Err: err}); strings.Contains(got.Error(), "the root partition is full") != full || !errors.Is(got, err) {
			t.Errorf("%v: it says %v", err, got)
		}
	}
}

// Root of the running system makes directories of the names of our files, and protects
// them.
func TestStoreDirectoriesForFiles(t *testing.T) {
	root := t.TempDir()
	l := LinuxStore{Root: root}
	for _, name := range []string{"halogen/shared/removed/x", "halogen/shared/kept/x", "halogen/shared/kept.new/x"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Remove("halogen/shared/removed"); err != nil {
		t.Error(err)
	}
	if err := l.Keep("halogen/shared/kept", []byte("x")); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(filepath.Join(root, "halogen/shared"))
	if err != nil || len(names) != 1 || !names[0].Type().IsRegular() || names[0].Name() != "kept" {
		t.Errorf("left are %v, %v", names, err)
	}
}

// mountTable notes what is mounted.
type mountTable struct {
	Mounts
	now, all []string
}

func (m *mountTable) Mount(source, target, _ string, _ uintptr, _ string) error {
	m.now, m.all = append(m.now, target), append(m.all, source+" "+target)
	return nil
}

func (m *mountTable) Unmount(target string) error {
	if len(m.now) == 0 || m.now[len(m.now)-1] != target {
		return errors.New("not what was mounted last")
	}
	m.now = m.now[:len(m.now)-1]
	return nil
}

// mkfs.btrfs asks /proc whether the device is mounted, and makes nothing without.
func TestMakeFileSystem(t *testing.T) {
	m := new(mountTable)
	system := t.TempDir()
	err := LinuxStore{Mounts: m}.MakeFileSystem("btrfs", "/dev/mapper/root", system)
	if err == nil || !strings.Contains(err.Error(), "mkfs.btrfs of the system image") {
		t.Errorf("without a program: %v", err)
	}
	if want := []string{"/dev " + system + "/dev", "/proc " + system + "/proc"}; !slices.Equal(m.all, want) || len(m.now) > 0 {
		t.Errorf("mounted were %q, and are %q; want %q, and none", m.all, m.now, want)
	}
}

// No link of the running system's leads an exchange of directories elsewhere.
func TestStoreSubvolumesHostile(t *testing.T) {
	root := tree(t, map[string]string{"real/var/x": "1", "outside/x": "1", "link": "->outside", "bind/there/x": "1"})
	store := LinuxStore{Root: root}
	for name, err := range map[string]error{
		"Rename from": store.Rename("link/x", "real/x"), "Rename to": store.Rename("real/var", "link/var"), "over what is there": store.Rename("real/var", "bind/there"),
		"Snapshot of": store.Snapshot("link", "real/y", true), "Snapshot as": store.Snapshot("real/var", "link/y", true), "RemoveSubvolume": store.RemoveSubvolume("link/x"),
		"out of it": store.Rename("real/var", "../var"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := store.Look("link/x"); !errors.Is(err, ErrUnfit) {
		t.Errorf("Look: %v", err)
	}
	for _, name := range []string{"real/var/x", "outside/x", "bind/there/x"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if err := store.Rename("real/var", "bind/var"); err != nil {
		t.Error(err)
	}
}
