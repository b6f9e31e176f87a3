package subvolume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// The kernel takes structures of exactly this size: it is part of the ioctl's number.
func TestStructures(t *testing.T) {
	for name, c := range map[string]struct {
		size    uintptr
		request uint32
	}{
		"SUBVOL_CREATE":  {unsafe.Sizeof(volArgs{}), iocSubvolCreate},
		"SNAP_DESTROY":   {unsafe.Sizeof(volArgs{}), iocSnapDestroy},
		"SNAP_CREATE_V2": {unsafe.Sizeof(volArgsV2{}), iocSnapCreateV2},
	} {
		if want := uintptr(c.request >> 16 & 0x3fff); c.size != want {
			t.Errorf("%s: the structure has %d bytes, the ioctl's number says %d", name, c.size, want)
		}
	}
}

// Elsewhere than on btrfs there are no subvolumes, and the ioctls are refused.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, dir)
	ok, err := Supported(fd)
	must(t, err)
	if ok {
		return // this machine's files lie on btrfs
	}
	for name, want := range map[string]Kind{"absent": Absent, "directory": Directory} {
		if want == Directory {
			must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		}
		if have, err := Look(fd, name); err != nil || have != want {
			t.Errorf("%s is of kind %d, %v", name, have, err)
		}
	}
	if err := Create(fd, "new"); err == nil {
		t.Error("a subvolume was made")
	}
	for _, name := range []string{"", strings.Repeat("n", 256)} {
		if err := Create(fd, name); err == nil || !strings.Contains(err.Error(), "want 1 to 255") {
			t.Errorf("a name of %d bytes: %v", len(name), err)
		}
	}
}

// What the kernel does with a real btrfs.
func TestBtrfs(t *testing.T) {
	dir := testkit.Btrfs(t)
	fd := open(t, dir)
	must(t, Create(fd, "var"))
	info, err := os.Stat(filepath.Join(dir, "var"))
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("a new subvolume is %v", info.Mode())
	}
	must(t, os.WriteFile(filepath.Join(dir, "var/file"), []byte("before"), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "plain"), 0o755))
	source := open(t, filepath.Join(dir, "var"))
	must(t, Snapshot(source, fd, "before", true))
	must(t, Snapshot(source, fd, "next", false))
	must(t, os.WriteFile(filepath.Join(dir, "var/file"), []byte("after"), 0o644))
	for name, want := range map[string]string{"var": "after", "before": "before", "next": "before"} {
		if text, err := os.ReadFile(filepath.Join(dir, name, "file")); err != nil || string(text) != want {
			t.Errorf("%s has %q, %v; want %q", name, text, err, want)
		}
		if kind, err := Look(fd, name); err != nil || kind != Subvolume {
			t.Errorf("%s is of kind %d, %v", name, kind, err)
		}
	}
	if kind, err := Look(fd, "plain"); err != nil || kind != Directory {
		t.Errorf("a directory is of kind %d, %v", kind, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "before/file"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("the read-only snapshot is written to: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "next/file"), []byte("later"), 0o644))
	if err := Snapshot(source, fd, "before", true); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	must(t, Create(source, "nested"))
	if err := Remove(fd, "var"); !errors.Is(err, ErrNested) {
		t.Errorf("a subvolume that holds another one: %v", err)
	}
	must(t, Snapshot(source, fd, "without", false))
	for _, name := range []string{"before", "next", "without"} {
		must(t, Remove(fd, name))
		if kind, err := Look(fd, name); err != nil || kind != Absent {
			t.Errorf("%s is left: kind %d, %v", name, kind, err)
		}
	}
}

func open(t *testing.T, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
