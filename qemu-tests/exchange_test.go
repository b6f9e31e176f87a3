package qemutests

import (
	"os"
	"path"
	"slices"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
)

// TestBootManagerExchange: Linux writes a new boot manager beside the old one, in both
// directories that have one, and the two exchange their content by a write of one sector
// while nobody has the ESP mounted. fsck.vfat finds nothing, and the firmware starts
// the new file.
// FAULTS 45
func TestBootManagerExchange(t *testing.T) {
	t.Parallel()
	managers := map[string]string{"EFI/BOOT/BOOTX64.EFI": "EFI/BOOT/HALOGEN.NEW", "EFI/systemd/systemd-bootx64.efi": "EFI/systemd/HALOGEN.NEW"}
	g := Machine(t, Options{State: provisioned(t).State})
	device := ""
	for _, d := range g.Boot().Disks {
		for i, p := range d.Partitions {
			if p.Number == layout.ESPNumber && i < len(d.Kernel) {
				device = "/dev/" + d.Kernel[i]
			}
		}
	}
	mount := func() {
		t.Helper()
		for _, module := range []string{"nls_cp437", "nls_ascii"} { // the kernel asks for them by a program that is not there
			g.Do(nil, "modprobe", module)
		}
		g.Do(nil, "mount", device, "/mnt", "vfat")
	}
	mount()
	for old, fresh := range managers {
		g.Do(nil, "cp", path.Join("/mnt", old), path.Join("/mnt", fresh))
	}
	g.Do(nil, "sync")
	g.Do(nil, "umount", "/mnt")
	g.PowerOff()
	for old, fresh := range managers {
		exchange(t, g.State(), old, fresh)
	}
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkESP()
	g.PowerOn()
	checkSecured(t, "with another boot manager", g.Boot())
	mount()
	for _, spare := range managers {
		g.Do(nil, "rm", path.Join("/mnt", spare))
	}
	g.Do(nil, "umount", "/mnt")
	g.PowerOff()
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkESP()
}

// exchange exchanges two files of a machine that is off.
func exchange(t *testing.T, s vm.State, a, b string) {
	t.Helper()
	d := openDisk(t, s.Disk(), os.O_RDWR)
	start, size := d.partition(layout.ESPNumber)
	esp, err := block.NewSection(d, start, size)
	must(t, err)
	clusters := func(name string) []uint32 {
		files, err := fat.Open(esp)
		must(t, err)
		all, err := files.Clusters(name)
		must(t, err)
		return all
	}
	first, second := clusters(a), clusters(b)
	must(t, fat.Exchange(esp, a, b, 512))
	if !slices.Equal(clusters(a), second) || !slices.Equal(clusters(b), first) {
		t.Errorf("%s has the clusters %v and %s has %v; they were %v and %v", a, clusters(a), b, clusters(b), first, second)
	}
}
