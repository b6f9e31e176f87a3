package image

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestSmallDiskGetsASmallPartition(t *testing.T) {
	o := options(t, rootfstest.Minimal().Write(t, false))
	o.DiskSize = 516 << 20 // no room for a slot of 16 MiB
	var said strings.Builder
	o.Progress = NewProgress(&said)
	r := mustBuild(t, o)
	f, err := os.Open(filepath.Join(o.Out, DiskFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, _, err := gpt.Read(f, uint64(o.DiskSize/512), 512)
	if err != nil {
		t.Fatal(err)
	}
	if want := "from a disk under 804 MiB"; !strings.Contains(said.String(), want) {
		t.Errorf("it does not say %q:\n%s", want, said.String())
	}
	if _, size := table.Bytes(table.Partitions[1]); size != layout.AlignUp(r.Release.ImageSize) {
		t.Errorf("partition 2 has %d bytes for an image of %d", size, r.Release.ImageSize)
	}
	testkit.Run(t, "sgdisk", "-v", f.Name())
}

// FAULTS 112: a disk.img of exactly the least size has room for what the first boot makes
// on it; one that is smaller has not, and the build says so.
func TestLeastDisk(t *testing.T) {
	root := rootfstest.Minimal().Write(t, false)
	least, err := layout.LeastDisk(layout.ESPSize, options(t, root).Config.SlotSize)
	if err != nil {
		t.Fatal(err)
	}
	for size, fits := range map[int64]bool{least: true, least - layout.Align: false} {
		o := options(t, root)
		var said strings.Builder
		o.DiskSize, o.Progress = size, NewProgress(&said)
		mustBuild(t, o)
		f, err := os.Open(filepath.Join(o.Out, DiskFile))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		table, _, err := gpt.Read(f, uint64(size/512), 512)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := layout.NewPlan(table, o.Config.SlotSize, rand.Reader); (err == nil) != fits {
			t.Errorf("%d MiB: the first boot says %v", size>>20, err)
		}
		if warned := strings.Contains(said.String(), "WARNING: disk.img has"); warned == fits {
			t.Errorf("%d MiB: warned %v:\n%s", size>>20, warned, said.String())
		}
	}
}
