package hw

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// e2fsck and resize2fs make a real ext4 smaller, also one that e2fsck has to repair;
// and what it cannot repair is an error.
func TestResize(t *testing.T) {
	testkit.Root(t, "programs run in a chroot")
	testkit.Need(t, "resize2fs")
	image := filepath.Join(t.TempDir(), "ext4")
	testkit.Run(t, "mke2fs", "-q", "-t", "ext4", image, "64M")
	l := LinuxStore{Mounts: new(mountTable)}
	const system = "/"
	if err := l.CanResize("ext4", system); err != nil {
		t.Fatal(err)
	}
	// A wrong count of free blocks is repaired.
	testkit.Run(t, "debugfs", "-w", "-R", "set_super_value free_blocks_count 7", image)
	if err := l.Resize("ext4", image, system, 40<<20); err != nil {
		t.Fatal(err)
	}
	if end, err := l.FileSystemEnd("ext4", image); err != nil || end != 40<<20 {
		t.Errorf("it ends at %d, %v", end, err)
	}
	testkit.Run(t, "e2fsck", "-f", "-n", image)
	if err := l.Resize("ext4", image, system, 1<<20); err == nil || !strings.Contains(err.Error(), "resize2fs of the system image") {
		t.Errorf("smaller than what it holds: %v", err)
	}
	testkit.Run(t, "debugfs", "-w", "-R", "clri <2>", image)
	if err := l.Resize("ext4", image, system, 32<<20); err == nil || !strings.Contains(err.Error(), "e2fsck of the system image") {
		t.Errorf("without a root directory: %v", err)
	}
	if err := l.Resize("xfs", image, system, 32<<20); err == nil {
		t.Error("another kind is taken")
	}
	empty := t.TempDir()
	if err := l.CanResize("ext4", empty); err == nil || !strings.Contains(err.Error(), "/sbin/e2fsck") {
		t.Errorf("an image without programs: %v", err)
	}
	if err := l.CanResize("btrfs", empty); err != nil {
		t.Errorf("btrfs needs %v", err)
	}
}

// The kernel makes a mounted btrfs smaller, keeps what it holds, and refuses where there is
// no room.
func TestResizeBtrfs(t *testing.T) {
	directory := testkit.Btrfs(t)
	content := bytes.Repeat([]byte("data"), 1<<18)
	if err := os.WriteFile(filepath.Join(directory, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	device, err := exec.Command("findmnt", "-n", "-o", "SOURCE", "--target", directory).Output()
	if err != nil {
		t.Fatal(err)
	}
	l := LinuxStore{Root: directory}
	was, err := l.FileSystemEnd("btrfs", strings.TrimSpace(string(device)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Resize("btrfs", "", "", was-64<<20); err != nil {
		t.Fatal(err)
	}
	if end, err := l.FileSystemEnd("btrfs", strings.TrimSpace(string(device))); err != nil || end != was-64<<20 {
		t.Errorf("it ends at %d, %v, want %d", end, err, was-64<<20)
	}
	if b, err := os.ReadFile(filepath.Join(directory, "file")); err != nil || !bytes.Equal(b, content) {
		t.Errorf("the file holds something else, %v", err)
	}
	if err := l.Resize("btrfs", "", "", 1<<20); err == nil {
		t.Error("it is made as small as a MiB")
	}
	random := make([]byte, 240<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(random)
	if err := os.WriteFile(filepath.Join(directory, "large"), random, 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := l.Resize("btrfs", "", "", 260<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("there is no room: %v", err)
	}
}
