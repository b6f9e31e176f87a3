package qemutests

import (
	"bytes"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/block"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
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
	g := Machine(t, Options{State: provisionedAtInit(t).State})
	device := ""
	for _, d := range g.Boot().Disks {
		for i, p := range d.Partitions {
			if p.Label == layout.ESPLabel && i < len(d.Kernel) {
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
	start, size := d.partition(layout.ESP)
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

// TestManagerRevoked: version 2 brings another boot manager. It takes the old one's place
// when version 2 was blessed, and then the old one goes into dbx. At every start the TPM
// opens by itself, that of the fallback included, which puts nothing old back; and the
// firmware does not start the old boot manager any more.
// FAULTS 58, 94
func TestManagerRevoked(t *testing.T) {
	t.Parallel()
	g := onTrial(t, variant{Watchdog: 20, Manager: true}, tries, vm.Options{})
	old := espContent(t, g.State(), bootManager)
	digest, err := authenticode.Digest(old)
	must(t, err)
	g.PowerOn()
	g.bless(g.boots(newSystem()))
	for _, said := range []string{
		bootManager + " is the one of version 2 now",
		"the firmware does not start the boot manager that came with halogen_1.efi any more",
	} {
		g.restartsUntil(said)
	}
	g.Do(nil, "reboot")
	g.boots(blessed())
	dbx := g.firmwareHolds(secureboot.DBX)
	if len(dbx) != 1 || dbx[0].Type != secureboot.TypeSHA256 || !bytes.Equal(dbx[0].Data, digest[:]) {
		t.Errorf("dbx holds %v, want the old boot manager's %x", dbx, digest)
	}
	g.PowerOff()
	fresh := espContent(t, g.State(), bootManager)
	if now, err := authenticode.Digest(fresh); err != nil || now == digest {
		t.Errorf("%s is the old one: %v", bootManager, err)
	}
	mtools(t, g.State(), "mren", "::"+bls.Directory+"/halogen_2.efi", "::"+bls.Directory+"/halogen_2+0-3.efi")
	g.PowerOn()
	g.boots(oldSystem())
	g.PowerOff()
	for _, name := range []string{bootManager, managerCopy} {
		if !bytes.Equal(espContent(t, g.State(), name), fresh) {
			t.Errorf("version 1 has changed %s", name)
		}
		espWrite(t, g.State(), name, old)
	}
	g.refusesManager()
}

// restartsUntil restarts the blessed version 2 until a boot has said something.
func (g *Guest) restartsUntil(said string) {
	g.t.Helper()
	const most = 5 // starts: the exchange and the record settle first
	for range most {
		before := len(g.Console().Text())
		g.Do(nil, "reboot")
		g.boots(blessed())
		if strings.Contains(g.Console().Text()[before:], said) {
			return
		}
	}
	g.t.Fatalf("after %d starts nothing has said %q", most, said)
}
