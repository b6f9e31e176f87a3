package qemutests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// node is a QEMU block node with a raw disk. Test directories have commas in their names.
func node(name, path string) []string {
	return []string{"-blockdev", "driver=raw,discard=unmap,node-name=" + name + ",file.driver=file,file.cache.no-flush=on,file.discard=unmap,file.filename=" + strings.ReplaceAll(path, ",", ",,")}
}

// tinyDisk is a small disk with nothing on it.
func tinyDisk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.img")
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	return path
}

// TestStorage sets new machines up on storage that is not one disk at one controller.
// FAULTS 112
func TestStorage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		attach func(t testing.TB, disk string) []string
		source string // how the kernel names the disk
	}{
		{"second NVMe namespace", func(t testing.TB, disk string) []string {
			return slices.Concat(node("own", disk), node("other", tinyDisk(t)), []string{
				"-device", "nvme,id=nvme,serial=nvme",
				"-device", "nvme-ns,drive=other,bus=nvme,nsid=1", "-device", "nvme-ns,drive=own,bus=nvme,nsid=2,bootindex=1"})
		}, "nvme0n"}, // the kernel numbers namespaces as it comes to them
		{"NVMe by two paths", func(_ testing.TB, disk string) []string {
			return append(node("own", disk), "-device", "nvme-subsys,id=subsystem",
				"-device", "nvme,id=first,serial=nvme,subsys=subsystem", "-device", "nvme,serial=nvme,subsys=subsystem",
				"-device", "nvme-ns,drive=own,bus=first,nsid=1,shared=on,bootindex=1")
		}, "nvme0n1"},
		{"last of twenty SCSI disks", func(_ testing.TB, disk string) []string {
			args := append(node("own", disk), "-device", "virtio-scsi-pci,id=scsi")
			for i := range 19 {
				args = append(args, "-blockdev", fmt.Sprintf("driver=null-co,node-name=n%d,size=1048576,read-zeroes=on", i), "-device", fmt.Sprintf("scsi-hd,drive=n%d,bus=scsi.0,scsi-id=%d", i, i))
			}
			return append(args, "-device", "scsi-hd,drive=own,bus=scsi.0,scsi-id=19,bootindex=1")
		}, "sd"},
		{"20 TB", func(t testing.TB, disk string) []string {
			large := filepath.Join(t.TempDir(), "large.qcow2") // no file of the host's can be that large
			testkit.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, large, "20T")
			return []string{"-blockdev", "driver=qcow2,discard=unmap,node-name=own,file.driver=file,file.cache.no-flush=on,file.filename=" + large,
				"-device", "virtio-blk-pci,drive=own,bootindex=1"}
		}, "vda"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, Options{Image: "testos-1", Timeout: 15 * time.Minute}) // two starts in one wait
			g.VM.NoDisk, g.VM.Extra = true, tt.attach(t, g.State().Disk())
			g.PowerOn()
			_, r := g.provision()
			r.Problems = nil // some disks have no partition table
			checkSecured(t, tt.name, r)
			if !slices.ContainsFunc(r.Disks, func(d protocol.Disk) bool { return strings.HasPrefix(d.Device, tt.source) && len(d.Partitions) == 6 }) {
				t.Errorf("disks %+v; want %s with six partitions", r.Disks, tt.source)
			}
			g.PowerOff()
		})
	}
}

// TestBadDisks: what cannot be read stops the boot, or not, with words that say so, and
// asks nobody for a key in vain. agent.TestUnreadable has more places.
// FAULTS 112
func TestBadDisks(t *testing.T) {
	t.Parallel()
	const stops = `(STOPPED|RECOVERY): [^\n]*`
	for _, tt := range []struct {
		name   string
		broken func(d *disk) []int64 // bytes
		want   string
	}{
		// With the primary partition table OVMF starts nothing: it looks at the alternate where
		// a checksum is wrong (TestTable), and not where a sector cannot be read.
		{"alternate partition table, the other slot", func(d *disk) []int64 {
			return []int64{int64(d.table.Sectors)*512 - 512, d.place(layout.SlotB.System()), d.place(layout.SlotB.Verity())}
		}, `halogen: unlock \(`},
		{"system image", func(d *disk) []int64 { return []int64{d.place(layout.SlotA.System())} }, stops},
		{"root partition's header", func(d *disk) []int64 { return []int64{d.place(layout.Root), d.place(layout.Root) + 16<<10} }, stops},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, Options{State: provisioned(t).State})
			path := g.State().Disk()
			rules := []map[string]any{}
			for _, at := range tt.broken(openDisk(t, path, os.O_RDONLY)) {
				rules = append(rules, map[string]any{"event": "none", "iotype": "read", "errno": 5, "sector": at / 512})
			}
			g.VM.NoDisk, g.VM.Extra = true, append(node("good", path), "-blockdev", asJSON(t, map[string]any{"driver": "blkdebug", "node-name": "own", "image": "good", "inject-error": rules}),
				"-device", "virtio-blk-pci,drive=own,bootindex=1")
			g.PowerOn()
			i, match := g.ExpectAny(asksForKey, tt.want)
			if t.Logf("%s", match[0]); i == 0 {
				t.Error("somebody is asked for a key")
			}
		})
	}
}

// place is where a partition begins, in bytes.
func (d *disk) place(r layout.Role) int64 {
	at, _ := d.partition(r)
	return at
}

// TestSlowDisk: a disk that answers next to nothing for the fifteen seconds after
// initagent has started is waited for.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	g := Machine(t, Options{State: provisionedAtInit(t).State})
	throttle := func(perSecond int) {
		all := map[string]any{"id": "/machine/peripheral/disk0-dev/virtio-backend"}
		for _, key := range []string{"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"} {
			all[key] = 0
		}
		all["iops"] = perSecond
		must(t, g.QMP().Do(t.Context(), "block_set_io_throttle", all, nil))
	}
	throttle(1)
	time.Sleep(15 * time.Second)
	throttle(0)
	checkSecured(t, "after a slow disk", g.Boot())
	g.PowerOff()
}

// TestReadOnlyDisk: a disk that cannot be written starts no system, and nobody is asked
// for a key in vain. At the console the data can be read, and a stick that is plugged in
// gets its driver, to take it along.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := newGuest(t, Options{State: p.State})
	g.VM.NoDisk, g.VM.Disks = true, []vm.Disk{{Path: g.State().Disk(), ReadOnly: true, BootIndex: 10}}
	g.VM.Extra = append(node("stick", tinyDisk(t)), "-device", "qemu-xhci,id=xhci")
	g.PowerOn()
	if i, match := g.ExpectAny(`RECOVERY: the disk is read-only[^\n]*`, `RECOVERY: [^\n]*`, asksForKey, protocol.Greeting); i != 0 {
		t.Fatalf("the boot came to %q", match[0])
	}
	g.Expect(`\$ `)
	g.unlock(p.Notes[recoveryKeyNote])
	g.command("find /run/state -name kept", `(?s)/kept.*\$ `)
	g.plugsStick()
	g.PowerCut()
}
