package agent

import (
	"slices"
	"testing"
	"time"

	"halogenos.internal/boot/bootoption"
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
		{"a little later", nvme, wayTimeout / 2, "disk0", wayTimeout},
		{"never", nvme, time.Hour, "disk1", 2 * wayTimeout},
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
			a := &Agent{Machine: m.agent.Machine, way: nvme}
			a.Disks = lateDisks{disks{m}, start.Add(c.after)}
			m.must(a.findDisk())
			if took := m.clock.Sub(start); a.disk.Name != c.want || took > c.most {
				t.Errorf("takes %s after %s", a.disk.Name, took)
			}
		})
	}
}
