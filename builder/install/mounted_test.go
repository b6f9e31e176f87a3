package install

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// A real disk in use, where the test may make one: a mount is seen, and the kernel
// itself refuses to open the disk. The other tests have directories in the place of /proc
// and /sys.
func TestMountedDisk(t *testing.T) {
	testkit.Root(t, "mount")
	testkit.Need(t, "mkfs.ext4")
	dir := t.TempDir()
	file, place := filepath.Join(dir, "disk"), filepath.Join(dir, "mounted")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 16*mib), os.Mkdir(place, 0o700)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", file)
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	disk := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", disk) })
	if err := unix.Mount(disk, place, "ext4", 0, ""); err != nil {
		t.Skipf("mount %s: %v", disk, err)
	}
	d, err := Running().Disk(disk)
	holds := Running().Holds(disk, place)
	_, oerr := Running().Open(d)
	if err := unix.Unmount(place, 0); err != nil {
		t.Fatal(err)
	}
	if err != nil || len(d.Uses) != 1 || !strings.HasSuffix(d.Uses[0].String(), "is mounted at "+place) {
		t.Errorf("uses %q, %v", d.Uses, err)
	}
	if !holds {
		t.Error("what is mounted does not lie on it")
	}
	if oerr == nil || !strings.Contains(oerr.Error(), "is in use") {
		t.Errorf("opened: %v", oerr)
	}
	if d, err = Running().Disk(disk); err != nil || len(d.Uses) > 0 || len(d.Contents) != 1 {
		t.Errorf("when it is no longer mounted: %+v, %v", d, err)
	}
	device, err := Running().Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(device.Uncached(), device.Close()); err != nil {
		t.Error(err)
	}

	// A disk of the same size has its name, as far as what was shown of the chosen one tells.
	for name, change := range map[string]func(*Disk){
		"one that had no number": func(d *Disk) { d.Sequence = 0 }, "another serial number": func(d *Disk) { d.Serial = "AAAA" },
		"another model": func(d *Disk) { d.Model = "Stick A" }, "another sector size": func(d *Disk) { d.SectorSize, d.Sectors = 4096, d.Sectors/8 },
	} {
		chosen := d
		change(&chosen)
		if device, err := Running().Open(chosen); err == nil || !strings.Contains(err.Error(), "another disk now") {
			t.Errorf("%s: %v", name, errors.Join(err, device.Close()))
		}
	}

	// Another disk of the same size gets the name.
	other := filepath.Join(dir, "other")
	if err := errors.Join(os.WriteFile(other, nil, 0o600), os.Truncate(other, 16*mib)); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "--detach", disk)
	run(t, "losetup", disk, other)
	if device, err := Running().Open(d); err == nil || !strings.Contains(err.Error(), "another disk now") {
		t.Errorf("another disk: %v", errors.Join(err, device.Close()))
	}
}

// What stands in for a disk that was chosen is not taken for it.
func TestSame(t *testing.T) {
	d := Disk{Path: "/dev/sda", Serial: "1", SectorSize: 512, Sectors: 100, Sequence: 7}
	for name, change := range map[string]func(*Disk){
		"sequence": func(d *Disk) { d.Sequence++ }, "serial": func(d *Disk) { d.Serial = "" }, "size": func(d *Disk) { d.Sectors++ },
		"model": func(d *Disk) { d.Model = "other" }, "sector size": func(d *Disk) { d.SectorSize, d.Sectors = 256, 200 },
	} {
		now := d
		if change(&now); d.Same(now) == nil {
			t.Errorf("another %s is taken for the same disk", name)
		}
	}
	if err := d.Same(d); err != nil {
		t.Error(err)
	}
}
