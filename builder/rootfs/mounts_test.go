package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// mount mounts until the test ends.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		testkit.Skip(t, fmt.Sprintf("no %s may be mounted here: %v", kind, err))
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// The layers of an overlay lie on two file systems, whose files have devices of their own
// and numbers that overlap. All of it is one root file system.
func TestOverlayOfTwoFileSystems(t *testing.T) {
	testkit.Root(t, "it mounts an overlay")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"lower", "upper", "all"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, "tmpfs", at("lower"), "tmpfs", 0, "")
	mount(t, "tmpfs", at("upper"), "tmpfs", 0, "")
	for _, name := range []string{"upper/layer", "upper/work"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As many files on each, so that numbers are the same in part.
	for i := range 20 {
		for _, layer := range []string{"lower", "upper/layer"} {
			name := at(fmt.Sprintf("%s/%s-%d", layer, filepath.Base(layer), i))
			if err := errors.Join(os.WriteFile(name, []byte(filepath.Base(name)), 0o644), os.Link(name, name+"-link")); err != nil {
				t.Fatal(err)
			}
		}
	}
	mount(t, "overlay", at("all"), "overlay", 0, "xino=off,lowerdir="+at("lower")+",upperdir="+at("upper/layer")+",workdir="+at("upper/work"))
	devices := map[uint64]bool{}
	for _, name := range []string{"all", "all/lower-0", "all/layer-0"} {
		info, err := os.Lstat(at(name))
		if err != nil {
			t.Fatal(err)
		}
		devices[info.Sys().(*syscall.Stat_t).Dev] = true
	}
	if len(devices) < 2 {
		testkit.Skip(t, "this kernel's overlay has one device")
	}
	tree := newTree(t)
	if err := tree.Fill(t.Context(), at("all"), "x86_64"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		for _, layer := range []string{"lower", "layer"} {
			name := fmt.Sprintf("%s-%d", layer, i)
			for _, file := range []string{name, name + "-link"} {
				if text, err := tree.ReadFile(file, 100); err != nil || string(text) != name {
					t.Errorf("%s has %q, %v", file, text, err)
				}
			}
		}
	}
}

// What is mounted inside is nothing of the image's, also where it is of the same file system.
func TestMountsInside(t *testing.T) {
	testkit.Root(t, "it mounts")
	for name, file := range map[string]bool{"tmpfs": false, "bind": false, "bind file": true} {
		dir := t.TempDir()
		other, inside := filepath.Join(dir, "other"), filepath.Join(dir, "root", "etc", "inside")
		if err := errors.Join(os.Mkdir(other, 0o755), os.MkdirAll(filepath.Dir(inside), 0o755)); err != nil {
			t.Fatal(err)
		}
		switch {
		case file:
			other = filepath.Join(other, "file")
			if err := errors.Join(os.WriteFile(other, nil, 0o644), os.WriteFile(inside, nil, 0o644)); err != nil {
				t.Fatal(err)
			}
		default:
			if err := os.Mkdir(inside, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if name == "tmpfs" {
			mount(t, "tmpfs", inside, "tmpfs", 0, "")
		} else {
			mount(t, other, inside, "", unix.MS_BIND, "")
		}
		if err := newTree(t).CopyDirectory(t.Context(), filepath.Join(dir, "root")); err == nil || !strings.Contains(err.Error(), "etc/inside something is mounted") {
			t.Errorf("%s: error %v", name, err)
		}
		_ = unix.Unmount(inside, unix.MNT_DETACH)
		if err := newTree(t).CopyDirectory(t.Context(), filepath.Join(dir, "root")); err != nil {
			t.Errorf("%s, unmounted: %v", name, err)
		}
	}
}
