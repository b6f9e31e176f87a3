package agent

import (
	mrand "math/rand/v2"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootdisk"
)

// fromDiskImage is what a disk holds that the release's disk image was written to.
func (m *machine) fromDiskImage() *world {
	m.t.Helper()
	w := m.installed(diskSize)
	table, _, err := gpt.Read(w.disk, uint64(diskSize/sectorSize), sectorSize)
	m.must(err)
	table.Disk, table.Partitions[0].UUID = layout.DiskImageIDs("test", "1")
	m.must(table.Write(w.disk))
	return w
}

// named names the ESP to the loader by the table that the firmware sees.
func (m *machine) named() *gpt.Table {
	m.t.Helper()
	table, _, err := m.table()
	m.must(err)
	m.espUUID = table.Partitions[0].UUID.String()
	return table
}

// FAULTS 112 (M9): the first boot of a disk that was written from a disk image gives
// the disk and the ESP UUIDs of their own, in one write with the partitions. Cut
// anywhere, the disk is found again. Two disks differ.
func TestOwnIDs(t *testing.T) {
	disk, esp := layout.DiskImageIDs("test", "1")
	m := newMachine(t, nil)
	m.powerOn(m.fromDiskImage())
	m.named()
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(7, 8)))
	if end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.said.String())
	}
	// What runs later in that boot finds the disk by the loader's old name.
	if _, err := bootdisk.Disk(m.agent.Disks, m.agent.Firmware); err != nil {
		t.Errorf("in the same boot: %v", err)
	}
	first := m.named()
	if first.Disk == disk || first.Partitions[0].UUID == esp || first.Partitions[0].UUID != layout.OwnESP(esp, first.Disk) {
		t.Errorf("the disk is %v and its ESP %v", first.Disk, first.Partitions[0].UUID)
	}
	if end := m.run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	if last := m.named(); last.Disk != first.Disk || last.Partitions[0].UUID != first.Partitions[0].UUID {
		t.Errorf("the UUIDs changed once more: %v", last)
	}

	next := newMachine(t, nil)
	old, own := 0, 0
	for i, s := range states {
		next.powerOn(s.world)
		table := next.named()
		_, made := table.ByNumber(layout.RootNumber)
		switch {
		case table.Disk == disk && table.Partitions[0].UUID == esp && !made:
			old++
		case table.Disk != disk && table.Partitions[0].UUID == layout.OwnESP(esp, table.Disk) && made:
			own++
		default:
			t.Errorf("%s: the disk is %v, its ESP %v; root partition: %v", s.how, table.Disk, table.Partitions[0].UUID, made)
		}
		if i%(len(states)/12+1) != 0 {
			continue
		}
		for range 6 {
			if end = next.boot(); end != "reboot" {
				break
			}
			next.named()
		}
		if end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", s.how, end, next.said.String())
		}
		if err := next.provisioned(); err != nil {
			t.Errorf("%s: %v", s.how, err)
		}
		if table := next.named(); table.Disk == disk || table.Partitions[0].UUID == esp {
			t.Errorf("%s: the disk stays %v, its ESP %v", s.how, table.Disk, table.Partitions[0].UUID)
		}
	}
	if old == 0 || own == 0 {
		t.Errorf("%d states with the image's UUIDs, %d with others", old, own)
	}

	// IDs that an installation gave are in the firmware's boot entry.
	m.powerOn(m.installed(diskSize))
	before, _, err := m.table()
	m.must(err)
	if end := m.run(); end != "system" {
		t.Fatalf("ends in %s", end)
	}
	if after, _, err := m.table(); err != nil || after.Disk != before.Disk || after.Partitions[0].UUID != before.Partitions[0].UUID {
		t.Errorf("after an installation: the disk is %v, %v", after.Disk, err)
	}
}
