package image

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/initramfs"
)

// debianFiles are those of a tree.
type debianFiles string

func (d debianFiles) ReadFile(name string, limit int64) ([]byte, error) {
	return bounded.File(os.DirFS(string(d)), name, limit)
}

// With ext4 the initramfs gets what growing slots takes, and what that depends on, where the
// kernel has it as a module.
func TestWantedModules(t *testing.T) {
	debian := testkit.Debian(t)
	kernels, err := filepath.Glob(filepath.Join(debian, "usr/lib/modules/*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, %v", kernels, err)
	}
	release := filepath.Base(kernels[0])
	x, err := initramfs.LoadIndex(debianFiles(debian), "usr/lib/modules/"+release, release)
	if err != nil {
		t.Fatal(err)
	}
	for fileSystem, has := range map[string]bool{"ext4": true, "btrfs": false} {
		c := &config.Config{Modules: []config.Module{{Name: "erofs"}}}
		c.RootPartitionFormat = fileSystem
		names, err := x.Select(wantedModules(c))
		if err != nil || slices.Contains(names, "dm_snapshot") != has || slices.Contains(names, "dm_bufio") != has || len(c.Modules) != 1 {
			t.Errorf("%s: %q, %v", fileSystem, names, err)
		}
	}
}
