package hw

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Alpine's init is a link that starts at the top, to what the initramfs has not.
func TestReachable(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"sbin", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/bin/halogen-test-busybox"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]error{
		"/usr/bin/halogen-test-busybox": nil, "../usr/bin/halogen-test-busybox": nil, "../../../usr/bin/halogen-test-busybox": nil,
		"/usr/bin/nothing": fs.ErrNotExist, "/proc/self/exe": fs.ErrNotExist, // of the initramfs, not of the system
	} {
		link := filepath.Join(root, "sbin/init")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if err := reachable(root, "/sbin/init"); !errors.Is(err, want) {
			t.Errorf("/sbin/init -> %s: %v, want %v", target, err, want)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	if err := reachable(root, "/sbin/init"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without init: error %v", err)
	}
}
