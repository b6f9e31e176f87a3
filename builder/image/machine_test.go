package image

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestLoadMachine(t *testing.T) {
	dir := rootfstest.Machine(t)
	page := filepath.Join(dir, "share/man/man8/ota.8")
	if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page, []byte("page"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "halogenctl"), []byte("control"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, commands, err := loadMachine(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"usr/bin/ota", "usr/sbin/halogenctl", "usr/share/man/man8/ota.8"}
	if have := slices.Sorted(maps.Keys(commands)); !slices.Equal(have, want) || string(commands["usr/share/man/man8/ota.8"]) != "page" {
		t.Errorf("commands %q, want %q", have, want)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "share/man/link")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadMachine(dir); err == nil || !strings.Contains(err.Error(), "share/man/link is not one of") {
		t.Errorf("a link: %v", err)
	}
}
