package agent_test

import (
	"errors"
	"slices"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/layout/layouttest"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/recovery"
)

// Sizes of the slots of a machine that has grown, and of an image that needs both extents.
const (
	grownSlot  = 2 * machinetest.SlotSize
	grownImage = machinetest.SlotSize + machinetest.SlotSize/2
)

func inGrownSlots(c *contract.Contract) {
	machinetest.Pinned(c)
	c.SlotSize = grownSlot
}

// grownMachine is a machine whose partitions have two extents each. The trees are divided
// after four blocks.
func grownMachine(t *testing.T) *machinetest.Machine {
	t.Helper()
	m := machinetest.ProvisionedMachine(t, inGrownSlots)
	table, _, err := m.Table()
	m.Must(err)
	divided := layouttest.Divide(t, table, machinetest.SlotSize, 4*verity.BlockSize)
	m.Must(errors.Join(divided.Write(m.Disk), m.Disk.Sync()))
	hasGrownSlots(m)
	return m
}

func largeRelease(t testing.TB, version uint64) *machinetest.Edition {
	t.Helper()
	return machinetest.NewLargeRelease(t, version, version+3, grownImage, inGrownSlots)
}

// runsLarge has the machine run a version that was fetched, from slot B.
func runsLarge(m *machinetest.Machine, version uint64) {
	m.T.Helper()
	m.Fetch(largeRelease(m.T, version))
	m.Runs(contract.Version(version))
	m.Bless()
	m.Runs(contract.Version(version))
	if s := m.RunningSlot(); s != layout.SlotB {
		m.T.Errorf("it runs from slot %s", s)
	}
}

// changeTable changes the table of a machine that is off.
func changeTable(m *machinetest.Machine, change func(*gpt.Table)) {
	m.T.Helper()
	table, _, err := m.Table()
	m.Must(err)
	change(table)
	m.Must(errors.Join(table.Write(m.Disk), m.Disk.Sync()))
}

// drop returns what takes the partition with a role out of a table.
func drop(r layout.Role) func(*gpt.Table) {
	return func(t *gpt.Table) {
		t.Partitions = slices.DeleteFunc(t.Partitions, func(p gpt.Partition) bool { return layout.RoleOf(p) == r })
	}
}

// A machine whose slots have grown starts what lies in the first extent, takes a release
// that needs both, goes back, and takes the next one.
func TestGrownSlots(t *testing.T) {
	m := grownMachine(t)
	table, _, err := m.Table()
	m.Must(err)
	m.Runs(1)
	runsLarge(m, 2)
	m.GivesUp("test_2.efi", "test_2+0-3.efi")
	m.Runs(1)
	if s := m.RunningSlot(); s != layout.SlotA {
		t.Errorf("it runs from slot %s", s)
	}
	runsLarge(m, 3)
	now, health, err := m.Table()
	if err != nil || !health.OK() {
		t.Fatal(health, err)
	}
	for _, p := range table.Partitions {
		is, _ := now.ByNumber(p.Number)
		if is.UUID, p.UUID = (gpt.GUID{}), (gpt.GUID{}); is != p {
			t.Errorf("partition %+v became %+v", p, is)
		}
	}
	// Both slots need both extents.
	m.Fetch(largeRelease(t, 4))
	m.Runs(4)
	m.Bless()
	m.Runs(4)
	if s := m.RunningSlot(); s != layout.SlotA {
		t.Errorf("it runs from slot %s", s)
	}
}

// A second extent that has vanished is named where its slot's system needs it, and missed by
// none that fits the first.
func TestGrownSlotLacksExtent(t *testing.T) {
	for _, c := range []struct {
		name, says string
		change     func(*gpt.Table)
	}{
		{"none", "the partition system-b has 2097152 bytes, the release needs 3145728, and the disk has no partition system-b-2 that adds to it", drop(layout.MoreSystemB)},
		{"none of the tree", "and the disk has no partition verity-b-2 that adds to it", drop(layout.MoreVerityB)},
		{"two", "could both be \"system-b-2\"", func(table *gpt.Table) {
			for i := range table.Partitions {
				if layout.RoleOf(table.Partitions[i]) == layout.MoreSystemA {
					table.Partitions[i].Label = layout.MoreSystemB.Label()
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := grownMachine(t)
			runsLarge(m, 2)
			changeTable(m, c.change)
			m.Runs(1, "test_2+0.efi has no tries left", c.says)
		})
	}
}

// What somebody writes beside the first extents of a machine that has not grown keeps it from
// nothing.
func TestStrangeExtents(t *testing.T) {
	for _, c := range []struct {
		name  string
		roles []layout.Role
		size  uint64 // sectors
	}{
		{"two alike", []layout.Role{layout.MoreSystemA, layout.MoreSystemA, layout.MoreVerityA, layout.MoreVerityA}, 500},
		{"of one sector", []layout.Role{layout.MoreSystemA, layout.MoreVerityA, layout.MoreSystemB, layout.MoreVerityB}, 1},
		{"of one slot", []layout.Role{layout.MoreSystemA, layout.MoreVerityB}, 999},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			changeTable(m, func(table *gpt.Table) {
				for n, r := range c.roles { // in front of the ESP
					layout.Insert(table, r, gpt.GUID{8, byte(n)}, 40+uint64(n)*c.size, 39+uint64(n+1)*c.size)
				}
			})
			m.Runs(1)
		})
	}
}

// The table of a grown machine is mended from its other copy, whichever that is.
func TestGrownTableIsMended(t *testing.T) {
	for _, lba := range []int64{1, machinetest.DiskSize/machinetest.SectorSize - 1} {
		m := grownMachine(t)
		want, _, err := m.Table()
		m.Must(err)
		m.Must(errors.Join(block.Zero(m.Disk, lba*machinetest.SectorSize, machinetest.SectorSize), m.Disk.Sync()))
		m.Runs(1)
		if now, health, err := m.Table(); err != nil || !health.OK() || !slices.Equal(now.Partitions, want.Partitions) {
			t.Errorf("sector %d: %+v, %s, %v", lba, now, health, err)
		}
		runsLarge(m, 2)
	}
}

// The first boot of a system that was installed beside a root partition makes what is missing
// of the slots, so that they are as large as they were with what lies behind that.
func TestGrownInstalledAgain(t *testing.T) {
	m := machinetest.New(t, inGrownSlots)
	w := m.Installed(machinetest.DiskSize)
	table, _, err := gpt.Read(w.Disk, machinetest.DiskSize/machinetest.SectorSize, machinetest.SectorSize)
	m.Must(err)
	const more = (grownSlot - machinetest.SlotSize) / machinetest.SectorSize
	at := table.Sectors/2048*2048 - 2048 - 2*more
	layout.Insert(table, layout.MoreSystemA, gpt.GUID{9, 1}, at, at+more-1)
	layout.Insert(table, layout.MoreSystemB, gpt.GUID{9, 2}, at+more, at+2*more-1)
	m.Must(table.Write(w.Disk))
	m.PowerOn(w)
	m.Ends("system")
	m.Runs(1)
	hasGrownSlots(m)
	runsLarge(m, 2)

	m.RootFiles()[machinetest.Marker] = []byte("a photo")
	m.PowerOn(m.Reinstalled(2))
	m.Owner = true
	m.Ends("system", "the system was installed again")
	m.Owner = false
	m.Runs(2)
	hasGrownSlots(m)
	if string(m.RootFiles()[machinetest.Marker]) != "a photo" || m.RunningSlot() != layout.SlotA {
		t.Errorf("it runs from slot %s, with %q", m.RunningSlot(), m.RootFiles()[machinetest.Marker])
	}
	runsLarge(m, 3)

	// A reset leaves the slots as they are.
	ask := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables, Root: t.TempDir()}}}
	m.Must(ask.AskForReset())
	m.Types("test")
	m.Ends("recovery", "the root partition is wiped, as was asked for")
	w = m.World(true, nil)
	w.Vars = machinetest.NewVariables() // Setup Mode
	m.PowerOn(w)
	m.Ends("system")
	m.Runs(3)
	hasGrownSlots(m)
}

// hasGrownSlots expects a whole table with slots of grownSlot.
func hasGrownSlots(m *machinetest.Machine) {
	m.T.Helper()
	table, health, err := m.Table()
	m.Must(err)
	for _, s := range layout.Slots {
		if size, err := layout.Size(table, s.System()); err != nil || size != grownSlot || !health.OK() {
			m.T.Errorf("slot %s has %d bytes, %v; %s", s, size, err, health)
		}
	}
}
