package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
)

// lateDisks has the machine's own disk some time after the other one, whose controller
// needs no driver that could be left out.
type lateDisks struct {
	disks
	from time.Time
}

func (d lateDisks) List() ([]hw.Disk, error) {
	d.m.driven = nil
	list, err := d.disks.List()
	if d.m.clock.Before(d.from) {
		list = slices.DeleteFunc(list, func(found hw.Disk) bool { return found.Name == "disk0" })
	}
	return list, err
}

// FAULTS 112: a disk of exactly the least size is set up, and its root partition has what
// is left; of one that is a sector smaller nothing is written.
func TestLeastDisk(t *testing.T) {
	const tail = 33 * sectorSize // the alternate table
	size, err := layout.LeastDisk(layout.ESPSize, slotSize)
	if err != nil {
		t.Fatal(err)
	}
	size += tail - layout.Align
	m := newMachine(t, nil)
	m.powerOn(m.installed(size - sectorSize))
	m.ends("recovery", "partition 6 (root) needs 256 MiB, the largest free space has 255 MiB")
	if i := slices.IndexFunc(m.ops, func(op string) bool { return strings.HasPrefix(op, "disk write") }); i >= 0 {
		t.Errorf("a disk that is too small: %s", m.ops[i])
	}
	m = newMachine(t, nil)
	m.powerOn(m.installed(size))
	m.ends("system")
	m.hasRoot(layout.MinRoot)
	m.runs(1)
}

// A disk.img that is smaller than the disk it was written to: the first boot uses all of
// the disk.
func TestImageOnLargerDisk(t *testing.T) {
	m := newMachine(t, nil)
	small := m.installed(600 * mib).disk // with less room than the layout takes
	w := m.installed(diskSize)
	w.disk = blocktest.New(diskSize, blocktest.Hostile)
	content := make([]byte, mib)
	for at := int64(0); at < small.Size(); at += mib {
		_, err := small.ReadAt(content, at)
		m.must(err)
		_, err = w.disk.WriteAt(content, at)
		m.must(err)
	}
	m.powerOn(w)
	m.ends("system")
	tree, err := layout.VeritySize(slotSize)
	m.must(err)
	m.hasRoot(diskSize - 2*layout.Align - layout.ESPSize - 2*(slotSize+tree))
	m.runs(1)
}

// hasRoot expects a root partition of so many bytes, in a table that is whole.
func (m *machine) hasRoot(want int64) {
	m.t.Helper()
	table, health, err := m.table()
	m.must(err)
	p, ok := table.ByNumber(layout.RootNumber)
	if _, size := table.Bytes(p); !ok || size != want || !health.OK() {
		m.t.Errorf("the root partition has %d bytes, want %d; %s", size, want, health)
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
			m := newMachine(t, nil)
			m.ends("system")
			if m.bootedFrom = nvme; len(c.own) == 1 {
				m.second = m.disk.now.Overlay()
			}
			m.pci = [2][]bootoption.Function{c.own, usb}
			start := m.clock
			a := &Agent{Host: host.Host{Machine: m.agent.Machine, Found: host.Found{Way: nvme}}}
			a.Disks = lateDisks{disks{m}, start.Add(c.after)}
			m.must(a.FindDisk())
			if took := m.clock.Sub(start); a.Disk.Name != c.want || took > c.most {
				t.Errorf("takes %s after %s", a.Disk.Name, took)
			}
		})
	}
}
