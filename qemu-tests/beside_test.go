package qemutests

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/install"
	"halogenos.internal/builder/vm"
)

// windowsDisk makes a disk as Windows's installer partitions it, with free space before
// the recovery partition, and something in every partition.
func windowsDisk(t testing.TB, path string) {
	t.Helper()
	must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, targetSize)))
	testkit.Run(t, "sgdisk", "--new=1:1M:+100M", "--typecode=1:ef00", "--change-name=1:EFI system partition",
		"--new=2:0:+16M", "--typecode=2:0c01", "--change-name=2:Microsoft reserved partition",
		"--new=3:0:+200M", "--typecode=3:0700", "--change-name=3:Basic data partition",
		"--new=4:-65M:-1M", "--typecode=4:2700", "--change-name=4:Basic data partition", path)
	d := openDisk(t, path, os.O_RDWR)
	for _, p := range d.table.Partitions {
		at, size := d.table.Bytes(p)
		if p.Type != layout.TypeESP {
			_, err := d.WriteAt(bytes.Repeat([]byte("somebody else's "), int(size/16)), at)
			must(t, err)
			continue
		}
		content := "Windows's boot manager"
		loader := fat.File{Path: "EFI/Microsoft/Boot/bootmgfw.efi", Size: int64(len(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
		must(t, fat.Format(io.NewOffsetWriter(d, at), size, fat.Options{SectorSize: 512, VolumeID: 7, Label: "SYSTEM"}, []fat.File{loader}))
	}
}

// outside is all that lies outside the free space of such a disk, but the tables' sectors.
func outside(t testing.TB, path string) (all []byte) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for _, piece := range [][2]int64{{34 * 512, 317 << 20}, {targetSize - 65<<20, targetSize - 33*512}} {
		content := make([]byte, piece[1]-piece[0])
		_, err := f.ReadAt(content, piece[0])
		must(t, err)
		all = append(all, content...)
	}
	return all
}

// TestFreeSpace installs into the free space of a disk with Windows's partitions. The
// first two starts make this system's own there, it starts with Secure Boot, and every byte
// outside is what it was, but the partition tables.
func TestFreeSpace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "windows.img")
	windowsDisk(t, path)
	before, old := outside(t, path), openDisk(t, path, os.O_RDONLY).table
	s, err := install.FromDirectory(filepath.Dir(Image(t, "testos-1")))
	must(t, err)
	defer s.Close()
	ids, err := install.RandomIDs(rand.Reader)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	disk := install.LookAt(f, install.Disk{Path: path, SectorSize: 512, Sectors: targetSize / 512})
	must(t, f.Close())
	p := install.NewPlan(s, disk, install.Facts{}, ids, install.Choice{OtherMachine: true, FreeSpace: true})
	must(t, p.Err(false))
	if !slices.ContainsFunc(p.Findings, func(f install.Finding) bool {
		return strings.Contains(f.Text, "Windows on "+path+" will no longer start")
	}) {
		t.Errorf("nothing is said of Windows: %+v", p.Findings)
	}
	device, err := install.Running().Open(p.Disk)
	must(t, err)
	must(t, errors.Join(p.Install(t.Context(), device, s, func(string, int64, int64) {}), device.Close()))
	g := Machine(t, Options{Image: "testos-1", Prepare: func(s vm.State) error { return os.Rename(path, s.Disk()) }})
	_, r := g.provision()
	checkSecured(t, "beside Windows", r)
	g.PowerOff()
	if !bytes.Equal(before, outside(t, g.State().Disk())) {
		t.Error("something outside the free space has changed")
	}
	d := openDisk(t, g.State().Disk(), os.O_RDONLY)
	if !slices.Equal(d.table.Partitions[:4], old.Partitions) || d.table.Disk != old.Disk {
		t.Errorf("the table is %+v, and was %+v", d.table, old)
	}
	for i, role := range []layout.Role{layout.ESP, layout.SystemA, layout.VerityA, layout.SystemB, layout.VerityB, layout.Root} {
		part, err := layout.Find(d.table, role)
		if at, size := d.table.Bytes(part); err != nil || part.Number != 5+i || at < 317<<20 || at+size > targetSize-65<<20 {
			t.Errorf("%s is %+v, %v", role, part, err)
		}
	}
	if _, health, err := gpt.Read(d, targetSize/512, 512); err != nil || !health.OK() {
		t.Errorf("the table: %v, %v", health, err)
	}
	testkit.Run(t, "sgdisk", "--verify", g.State().Disk())
}
