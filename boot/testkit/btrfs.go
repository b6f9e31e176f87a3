package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// btrfsSize is that of the file systems in bytes; btrfs has none below 109 MiB.
const btrfsSize = 256 << 20

// Btrfs returns a directory in which a new btrfs is mounted. Where nobody may mount one the
// test is left out: mkfs.btrfs is nothing that a machine lacks, a kernel may be.
func Btrfs(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a btrfs")
	}
	mkfs := Need(t, "mkfs.btrfs")
	file, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, btrfsSize); err != nil {
		t.Fatal(err)
	}
	Run(t, mkfs, "-q", file)
	if out, err := exec.Command("mount", "-t", "btrfs", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Skipf("no btrfs may be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() { Run(t, "umount", dir) })
	return dir
}
