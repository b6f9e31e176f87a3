package qemutests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// TestBuses boots the same disk at every kind of bus, with a second, empty disk of
// another kind that the firmware sees first, and whose driver is left to the
// system. One of them is new, and sets itself up in 256 MiB of memory.
func TestBuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		o    vm.Options
		new  bool
	}{
		{"nvme, tis", vm.Options{Bus: vm.NVMe, TPM: vm.TPMTIS, Memory: 256}, true},
		{"sata", vm.Options{Bus: vm.SATA}, false},
		{"usb", vm.Options{Bus: vm.USB}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			empty := filepath.Join(t.TempDir(), "empty.img")
			if err := os.WriteFile(empty, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			tt.o.Disks = []vm.Disk{{Path: empty}}
			var g *Guest
			var r protocol.Report
			if tt.new {
				g = Machine(t, Options{Image: "testos-1", VM: tt.o})
				_, r = g.provision()
			} else {
				g = Machine(t, Options{State: provisioned(t).State, VM: tt.o})
				r = g.Boot()
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

// TestWatchdog: a system that hangs is reset by the chipset's watchdog. The other kind
// has TestTrialSystemHangs.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{State: provisioned(t).State, VM: vm.Options{Watchdog: vm.ITCO}})
	checkWatchdog(t, g.Boot(), vm.ITCO)
	g.systemHangs()
	g.Boot()
}

// checkWatchdog expects that initagent handed a watchdog over running.
func checkWatchdog(t testing.TB, r protocol.Report, kind vm.Watchdog) {
	t.Helper()
	// The chipset has its own besides, which may be strapped off.
	i := slices.IndexFunc(r.Watchdogs, func(w protocol.Watchdog) bool {
		return strings.HasPrefix(strings.ToLower(w.Identity), strings.ToLower(string(kind[:4])))
	})
	if i < 0 || r.Watchdogs[i].State != "active" || !r.Watchdogs[i].Fed || r.Watchdogs[i].Timeout != 180 {
		t.Fatalf("watchdogs %+v; want the %s handed over running, to wait for 180 s", r.Watchdogs, kind)
	}
}

// systemHangs hangs the system, not the kernel under it, and waits for the watchdog.
func (g *Guest) systemHangs() {
	g.t.Helper()
	g.Do(nil, "watchdog", "5") // or it waits as long as a slow system may need to start
	g.Do(nil, "hang")
	g.bites()
}
