package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BtrfsSize is that of the file systems of Btrfs, in bytes; btrfs makes none smaller than 256 MiB.
const BtrfsSize = 384 << 20

// Btrfs returns a directory in which a new btrfs is mounted. The test is left out where
// nobody may mount one, or the kernel has none: a machine of TestBtrfs in qemu-tests does
// the same there. Anything else that goes wrong is a failure.
func Btrfs(t testing.TB) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	if why := mayMount(dir); why != "" {
		t.Skipf("%s: what this shows, TestBtrfs of qemu-tests shows on a machine", why)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, BtrfsSize); err != nil {
		t.Fatal(err)
	}
	Run(t, "mkfs.btrfs", "-q", file)
	out, err := exec.Command("mount", "-t", "btrfs", "-o", "loop", file, dir).CombinedOutput()
	switch {
	case err != nil && !hasBtrfs(): // and its module was asked for just now
		t.Skip("this kernel has no btrfs: what this shows, TestBtrfs of qemu-tests shows on a machine")
	case err != nil:
		t.Fatalf("mount a btrfs: %v: %s", err, out)
	}
	t.Cleanup(func() { Run(t, "umount", dir) })
	return dir
}

// mayMount says why no file can be mounted here; "" where one can.
func mayMount(at string) string {
	if os.Geteuid() != 0 {
		return "only root can mount a btrfs"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "there are no loop devices"
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "none", at).CombinedOutput(); err != nil {
		return "root of this container may mount nothing: " + string(out)
	}
	if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
		return "what was mounted stays: " + string(out)
	}
	return ""
}

func hasBtrfs() bool {
	text, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(text), "\tbtrfs\n")
}
