package qemutests

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// TestBuses: a machine with 256 MiB of memory and an NVMe disk of exactly the least size.
// FAULTS 112
func TestBuses(t *testing.T) {
	t.Parallel()
	testBuses(t, bus{"nvme, tis", vm.Options{Bus: vm.NVMe, TPM: vm.TPMTIS, Memory: 256}, true})
}

// TestMoreBuses: the same for the others.
// FAULTS 112
func TestMoreBuses(t *testing.T) {
	t.Parallel()
	testBuses(t, bus{"sata", vm.Options{Bus: vm.SATA}, false}, bus{"usb", vm.Options{Bus: vm.USB}, false})
}

type bus struct {
	name  string
	o     vm.Options
	least bool
}

// testBuses sets new machines up, each with a second, empty disk of another kind that the
// firmware sees first, and whose driver is left to the system.
func testBuses(t *testing.T, tests ...bus) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.o.Disks = []vm.Disk{{Path: tinyDisk(t)}}
			o := Options{Image: "testos-1", VM: tt.o, Timeout: 15 * time.Minute} // two starts in one wait
			if tt.least {
				o.Prepare = func(s vm.State) error { return leastDisk(t, s) }
			}
			g := Machine(t, o)
			_, r := g.provision()
			if tt.least {
				checkRootSize(t, r, layout.MinRoot)
			}
			r.Problems = nil // the empty disk has no partition table
			checkSecured(t, tt.name, r)
			i := slices.IndexFunc(r.Mounts, func(m protocol.Mount) bool { return m.Target == "/" })
			if i < 0 || !strings.HasPrefix(r.Mounts[i].Source, "/dev/dm-") || r.Mounts[i].Type != "erofs" {
				t.Errorf("/ is not on a mapped device: %+v", r.Mounts)
			}
			// A USB disk can take longer than initagent waits for it before it asks all controllers.
			alone := len(r.Disks) == 1 || tt.o.Bus == vm.USB
			if !alone || len(r.Disks[0].Partitions) == 0 || r.Disks[0].Serial == "disk1" {
				t.Errorf("disks %+v; want the machine's own alone", r.Disks)
			}
			g.Do(nil, "modprobe", "virtio_blk")
			if r = g.Report(); len(r.Disks) != 2 {
				t.Errorf("disks %+v; want the other one, too", r.Disks)
			}
			g.PowerOff()
		})
	}
}

// TestOldMachine: a machine of 1996 (i440FX) without PCI Express. QEMU's protects its
// variables on q35 alone (SMM), so the image is one that does without Secure Boot, too.
// FAULTS 112
func TestOldMachine(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{Image: "testos-optional-1", VM: vm.Options{
		TPM: vm.TPMTIS, Firmware: vm.Firmware{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		Extra: []string{"-machine", "pc,smm=off,pflash0=code,pflash1=vars", "-global", "driver=cfi.pflash01,property=secure,value=off"},
	}})
	_, r := g.provision()
	if t.Logf("SecureBoot=%s", r.EFI["SecureBoot"]); !rootIsOpen(r) || !r.Writable["/var"] {
		t.Errorf("writable %v, devices %+v", r.Writable, r.DM)
	}
	before := len(g.Console().Text())
	if r := g.Reboot(); !rootIsOpen(r) || strings.Contains(g.Console().Text()[before:], "Recovery key (") {
		t.Errorf("devices %+v; want root, and no question", r.DM)
	}
	g.PowerOff()
}

// checkRootSize expects a root partition of so many bytes on the first disk.
func checkRootSize(t testing.TB, r protocol.Report, want uint64) {
	t.Helper()
	root := r.Disks[0].Partitions[len(r.Disks[0].Partitions)-1]
	if root.Label != layout.RootLabel || root.Bytes != want {
		t.Errorf("partition %+v; want root with %d bytes", root, want)
	}
}

// leastDisk makes the machine's disk one of exactly the least size for its image.
func leastDisk(t testing.TB, s vm.State) error {
	t.Helper()
	r := imageRelease(t, "testos-1")
	size, err := layout.LeastDisk(layout.ESPSize, r.SlotSize)
	if err != nil {
		return err
	}
	const tail = 33 * 512 // the alternate table: the root partition ends right before it
	size += tail - layout.Align
	d := openDisk(t, s.Disk(), os.O_RDWR)
	d.table.Sectors = uint64(size) / 512
	return errors.Join(d.Truncate(size), d.table.Write(d))
}

// checkWatchdog expects that initagent handed a watchdog over running, to wait for so
// many seconds.
func checkWatchdog(t testing.TB, r protocol.Report, kind vm.Watchdog, seconds int) {
	t.Helper()
	// The chipset has its own besides, which may be strapped off.
	i := slices.IndexFunc(r.Watchdogs, func(w protocol.Watchdog) bool {
		return strings.HasPrefix(strings.ToLower(w.Identity), strings.ToLower(string(kind[:4])))
	})
	if i < 0 || r.Watchdogs[i].State != "active" || !r.Watchdogs[i].Fed || r.Watchdogs[i].Timeout != seconds {
		t.Fatalf("watchdogs %+v; want the %s handed over running, to wait for %d s", r.Watchdogs, kind, seconds)
	}
}

// systemHangs hangs the system, not the kernel under it, and waits for the watchdog.
func (g *Guest) systemHangs() {
	g.t.Helper()
	g.Do(nil, "watchdog", "5") // or it waits as long as a slow system may need to start
	g.Do(nil, "hang")
	g.bites()
}
