package agent_test

import (
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// Wherever the disk of a machine in use gives EIO, the boot comes to an end: to the
// system, or to the recovery console with words that say what cannot be read. Nothing is
// made again in its place: the machine starts as before when the disk reads again.
// FAULTS 112
func TestUnreadable(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	good := m.World(true, nil)
	table, _, err := m.Table()
	m.Must(err)
	in := func(r layout.Role, offset int64) int64 {
		p, err := layout.Find(table, r)
		m.Must(err)
		start, _ := table.Bytes(p)
		return start + offset
	}
	const inUse = "input/output error"
	a, b := layout.SlotA, layout.SlotB
	for _, c := range []struct {
		name     string
		at, size int64
		end      string
		says     []string // beside the end
	}{
		{"the protective MBR", 0, machinetest.SectorSize, "system", nil},
		{"the primary table's header", machinetest.SectorSize, machinetest.SectorSize, "system", []string{"primary"}},
		{"the primary table's entries", 2 * machinetest.SectorSize, 32 * machinetest.SectorSize, "system", []string{"primary"}},
		{"the alternate table's entries", machinetest.DiskSize - 33*machinetest.SectorSize, machinetest.SectorSize, "system", []string{"alternate"}},
		{"the alternate table's header", machinetest.DiskSize - machinetest.SectorSize, machinetest.SectorSize, "system", []string{"alternate"}},
		{"both tables", 0, machinetest.DiskSize, "recovery", []string{inUse}},
		{"the first block of the system", in(a.System(), 0), 4096, "recovery", []string{inUse}},
		{"the last block of the system", in(a.System(), machinetest.ImageSize-4096), 4096, "recovery", []string{inUse}},
		{"the tree", in(a.Verity(), 4096), 4096, "recovery", []string{inUse}},
		{"the other slot", in(b.System(), 0), machinetest.SlotSize, "system", nil},
		{"the other slot's tree", in(b.Verity(), 0), 4096, "system", nil},
		{"the root partition's header", in(layout.Root, 0), luks2.DataOffset, "recovery", []string{inUse}},
		{"all keyslots of the root partition", in(layout.Root, 32<<10), luks2.DataOffset - 32<<10, "recovery", []string{inUse, "so no key is asked for"}},
		{"one copy of the header", in(layout.Root, 0), 4096, "system", nil},
		{"the other copy of the header", in(layout.Root, 16<<10), 4096, "system", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.T = t
			m.PowerOn(good)
			m.Bad.From, m.Bad.To = c.at, c.at+c.size
			m.Ends(c.end, c.says...)
			if c.end == "system" && (m.OpenVolume == nil || strings.Contains(m.Printed.String(), "ecovery key")) {
				t.Errorf("the root partition is closed; it asks %q:\n%s", m.Printed.String(), m.Said.String())
			}
			if strings.Contains(m.Printed.String(), "Recovery key (") {
				t.Errorf("it asks for the recovery key in vain:\n%s", m.Printed.String())
			}
			m.Bad.From, m.Bad.To = 0, 0
			m.Printed.Reset()
			m.Runs(1)
			if len(m.Shown) != 1 {
				t.Errorf("%d recovery keys were shown", len(m.Shown))
			}
		})
	}
}

// A file system whose disk gives EIO after the TPM has opened the root partition: nobody is
// asked for a key, which helps nothing. The console says which sectors are bad, and to copy
// first. FAULTS 82, 112
func TestFileSystemUnreadable(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	good := m.World(true, nil)
	for _, c := range []struct{ bad, step string }{{rootpart.Directory, "unlock"}, {"bind/var", "mount-state"}} {
		for _, messages := range []string{"", "<3>[    2.1] I/O error, dev disk0, sector 2101250 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2\n"} {
			m.PowerOn(good)
			m.BadFiles, m.Messages = c.bad, messages
			m.Printed.Reset()
			says := []string{"input/output error: the disk fails to read what is on the root partition", "The disk fails to read. Copy your files before anything else", c.step + " FAILED"}
			if messages != "" {
				says = append(says, "I/O error of disk0 at sector 2101250")
			}
			m.Ends("recovery", says...)
			if m.Printed.Len() > 0 || strings.Contains(m.Said.String(), "`reset`") {
				t.Errorf("%s: it asks %q:\n%s", c.bad, m.Printed.String(), m.Said.String())
			}
			m.BadFiles = ""
			m.Runs(1)
		}
	}
}

// An error of the system image's file system, or of the TPM, says nothing of the root
// partition, and its cure is another one. FAULTS 82
func TestDiskFailsElsewhere(t *testing.T) {
	for step, path := range map[bootflow.Kind]string{bootflow.MountState: "/initramfs/sysroot/usr/lib/halogen/state.conf", bootflow.AskKey: "/dev/tpmrm0"} {
		a := &host.Host{Given: host.Given{Root: "/initramfs"}, Opened: host.Opened{Volume: host.Volume{Attached: true}}}
		err := fmt.Errorf("in between: %w", &fs.PathError{Op: "read", Path: path, Err: syscall.EIO})
		if fails, got := a.DiskFails(step, err); got != err || fails {
			t.Errorf("%s: %v, the disk fails: %v", path, got, fails)
		}
	}
}
