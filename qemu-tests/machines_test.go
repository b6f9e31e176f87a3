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

// TestBuses boots the same image from every kind of disk, with a second, empty disk
// of another kind that the firmware and the kernel see first.
func TestBuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		o    vm.Options
	}{
		{"nvme, tis", vm.Options{Bus: vm.NVMe, TPM: vm.TPMTIS}},
		{"sata", vm.Options{Bus: vm.SATA}},
		{"usb", vm.Options{Bus: vm.USB}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			empty := filepath.Join(t.TempDir(), "empty.img")
			if err := os.WriteFile(empty, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			tt.o.Disks = []vm.Disk{{Path: empty}}
			g := Machine(t, Options{Image: "testos-1", VM: tt.o})
			r := g.Boot()
			i := slices.IndexFunc(r.Mounts, func(m protocol.Mount) bool { return m.Target == "/" })
			if i < 0 || !strings.HasPrefix(r.Mounts[i].Source, "/dev/dm-") || r.Mounts[i].Type != "erofs" {
				t.Errorf("/ is not on a mapped device: %+v", r.Mounts)
			}
			i = slices.IndexFunc(r.Disks, func(d protocol.Disk) bool { return len(d.Partitions) > 0 })
			if len(r.Disks) != 2 || i < 0 || r.Disks[i].Serial == "disk1" {
				t.Errorf("disks %+v; want the machine's own in use", r.Disks)
			}
			g.PowerOff()
		})
	}
}

// TestWatchdogs: a system that hangs is reset by each of the watchdogs.
func TestWatchdogs(t *testing.T) {
	t.Parallel()
	for _, kind := range []vm.Watchdog{vm.I6300ESB, vm.ITCO} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			g := Machine(t, Options{Image: "testos-1", VM: vm.Options{Watchdog: kind}})
			r := g.Boot()
			if len(r.Watchdogs) == 0 {
				for _, module := range []string{"lpc_ich", "iTCO_wdt", "i6300esb"} {
					g.Do(nil, "modprobe", module)
				}
				r = g.Report()
			}
			if len(r.Watchdogs) != 1 || !strings.Contains(strings.ToLower(r.Watchdogs[0].Identity), strings.ToLower(string(kind[:4]))) {
				t.Fatalf("watchdogs %+v; want one %s", r.Watchdogs, kind)
			}
			if r.Watchdogs[0].State != "active" {
				g.Do(nil, "write", "/dev/"+r.Watchdogs[0].Name, "x") // starts it; only V stops it
			}
			g.Do(nil, "hang")
			ctx, cancel := g.wait()
			defer cancel()
			if _, err := g.QMP().WaitEvent(ctx, "WATCHDOG"); err != nil {
				t.Fatal(err)
			}
			g.Boot()
		})
	}
}
