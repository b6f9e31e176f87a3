package agent_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/machinetest"
)

// lateDisks has the machine's own disk some time after the other one, whose controller
// needs no driver that could be left out.
type lateDisks struct {
	machinetest.Disks
	from time.Time
}

func (d lateDisks) List() ([]hw.Disk, error) {
	d.M.Driven = nil
	list, err := d.Disks.List()
	if d.M.Clock.Before(d.from) {
		list = slices.DeleteFunc(list, func(found hw.Disk) bool { return found.Name == "disk0" })
	}
	return list, err
}

// FAULTS 112: a disk of exactly the least size is set up, and its root partition has what
// is left; of one that is a sector smaller nothing is written.
func TestLeastDisk(t *testing.T) {
	const tail = 33 * machinetest.SectorSize // the alternate table
	size, err := layout.LeastDisk(layout.ESPSize, machinetest.SlotSize)
	if err != nil {
		t.Fatal(err)
	}
	size += tail - layout.Align
	m := machinetest.New(t, nil)
	m.PowerOn(m.Installed(size - machinetest.SectorSize))
	m.Ends("recovery", "the partition root needs 256 MiB, and the largest free space that it may have has 255 MiB")
	if i := slices.IndexFunc(m.Ops, func(op string) bool { return strings.HasPrefix(op, "disk write") }); i >= 0 {
		t.Errorf("a disk that is too small: %s", m.Ops[i])
	}
	m = machinetest.New(t, nil)
	m.PowerOn(m.Installed(size))
	m.Ends("system")
	hasRoot(m, layout.MinRoot)
	m.Runs(1)
}

// A disk.img that is smaller than the disk it was written to: the first boot uses all of
// the disk.
func TestImageOnLargerDisk(t *testing.T) {
	m := machinetest.New(t, nil)
	small := m.Installed(600 * machinetest.MiB).Disk // with less room than the layout takes
	w := m.Installed(machinetest.DiskSize)
	w.Disk = blocktest.New(machinetest.DiskSize, blocktest.Hostile)
	content := make([]byte, machinetest.MiB)
	for at := int64(0); at < small.Size(); at += machinetest.MiB {
		_, err := small.ReadAt(content, at)
		m.Must(err)
		_, err = w.Disk.WriteAt(content, at)
		m.Must(err)
	}
	m.PowerOn(w)
	m.Ends("system")
	tree, err := layout.VeritySize(machinetest.SlotSize)
	m.Must(err)
	hasRoot(m, machinetest.DiskSize-2*layout.Align-layout.ESPSize-2*(machinetest.SlotSize+tree))
	m.Runs(1)
}

// hasRoot expects a root partition of so many bytes, in a table that is whole.
func hasRoot(m *machinetest.Machine, want int64) {
	m.T.Helper()
	table, health, err := m.Table()
	m.Must(err)
	p, err := layout.Find(table, layout.Root)
	if _, size := table.Bytes(p); err != nil || size != want || !health.OK() {
		m.T.Errorf("the root partition has %d bytes, want %d; %s", size, want, health)
	}
}

// A copy of the disk on USB, which may be there first, is not written to as long as the
// disk that the machine was started from may still show itself.
func TestCopyShowsFirst(t *testing.T) { // FAULTS 39
	nvme, usb := []bootoption.Function{{Device: 3}}, []bootoption.Function{{Device: 20}}
	for _, c := range []struct {
		name  string
		own   []bootoption.Function // where the machine's disk is
		after time.Duration
		want  string
		most  time.Duration
	}{
		{"at once", nvme, 0, "disk0", 0},
		{"a little later", nvme, host.WayTimeout / 2, "disk0", host.WayTimeout},
		{"never", nvme, time.Hour, "disk1", 2 * host.WayTimeout},
		{"behind what the firmware names", slices.Concat(nvme, usb), 0, "disk0", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.New(t, nil)
			m.Ends("system")
			if m.StartsFrom = nvme; len(c.own) == 1 {
				m.Second = m.Disk.Now.Overlay()
			}
			m.PCI = [2][]bootoption.Function{c.own, usb}
			start := m.Clock
			a := &agent.Agent{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine}, Found: host.Found{Way: nvme}}}
			a.Disks = lateDisks{machinetest.Disks{M: m}, start.Add(c.after)}
			m.Must(a.FindDisk())
			if took := m.Clock.Sub(start); a.Disk.Name != c.want || took > c.most {
				t.Errorf("takes %s after %s", a.Disk.Name, took)
			}
		})
	}
}

// Beside somebody else's partitions, before ours and after, a machine makes itself in the
// free space that follows its own. What is not its own stays as it was, byte for byte, but
// the tables.
func TestBesideOthers(t *testing.T) {
	m := machinetest.New(t, nil)
	table, _, err := m.Table()
	m.Must(err)
	end := table.Sectors - 34
	before := gpt.Partition{Number: 3, Type: layout.TypeData, UUID: gpt.GUID{7}, First: 34, Last: 2047, Label: "a boot sector's"}
	after := gpt.Partition{Number: 7, Type: layout.TypeESP, UUID: gpt.GUID{8}, First: end - 40000, Last: end - 30000, Label: "EFI system partition"}
	table.Partitions = append(table.Partitions, before, after)
	m.Must(table.Write(m.Disk))
	theirs := []gpt.Partition{before, after, {Number: 9, First: after.Last + 1, Last: end}} // and free space
	for _, p := range theirs {
		_, err := m.Disk.WriteAt(bytes.Repeat([]byte{byte(p.Number)}, int(p.Sectors())*machinetest.SectorSize), int64(p.First)*machinetest.SectorSize)
		m.Must(err)
	}
	m.Must(m.Disk.Sync())
	m.Ends("system")
	m.Runs(1)
	now, health, err := m.Table()
	m.Must(err)
	if !health.OK() {
		t.Error(health)
	}
	for _, p := range theirs {
		have := make([]byte, int(p.Sectors())*machinetest.SectorSize)
		_, err := m.Disk.ReadAt(have, int64(p.First)*machinetest.SectorSize)
		m.Must(err)
		if len(bytes.Trim(have, string(rune(p.Number)))) > 0 {
			t.Errorf("what lay at sectors %d to %d has changed", p.First, p.Last)
		}
	}
	if !slices.Contains(now.Partitions, before) || !slices.Contains(now.Partitions, after) {
		t.Errorf("the table is %+v", now.Partitions)
	}
	if root, err := layout.Find(now, layout.Root); err != nil || root.Last >= after.First {
		t.Errorf("the root partition is %+v, %v", root, err)
	}
}
