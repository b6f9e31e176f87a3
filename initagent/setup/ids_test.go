package setup_test

import (
	mrand "math/rand/v2"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/machinetest"
)

// fromDiskImage is what a disk holds that the release's disk image was written to.
func fromDiskImage(m *machinetest.Machine) *machinetest.World {
	m.T.Helper()
	w := m.Installed(machinetest.DiskSize)
	table, _, err := gpt.Read(w.Disk, uint64(machinetest.DiskSize/machinetest.SectorSize), machinetest.SectorSize)
	m.Must(err)
	table.Disk, table.Partitions[0].UUID = layout.DiskImageIDs("test", "1")
	m.Must(table.Write(w.Disk))
	return w
}

// named names the ESP to the loader by the table that the firmware sees.
func named(m *machinetest.Machine) *gpt.Table {
	m.T.Helper()
	table, _, err := m.Table()
	m.Must(err)
	m.EspUUID = table.Partitions[0].UUID.String()
	return table
}

// FAULTS 112 (M9): the first boot of a disk that was written from a disk image gives
// the disk and the ESP UUIDs of their own, in one write with the partitions. Cut
// anywhere, the disk is found again. Two disks differ.
func TestOwnIDs(t *testing.T) {
	disk, esp := layout.DiskImageIDs("test", "1")
	m := machinetest.New(t, nil)
	m.PowerOn(fromDiskImage(m))
	named(m)
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(7, 8)))
	if end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
	}
	// What runs later in that boot finds the disk by the loader's old name.
	if _, err := bootdisk.Disk(m.Agent.Disks, m.Agent.Firmware); err != nil {
		t.Errorf("in the same boot: %v", err)
	}
	first := named(m)
	if first.Disk == disk || first.Partitions[0].UUID == esp || first.Partitions[0].UUID != layout.OwnESP(esp, first.Disk) {
		t.Errorf("the disk is %v and its ESP %v", first.Disk, first.Partitions[0].UUID)
	}
	if end := m.Run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	if last := named(m); last.Disk != first.Disk || last.Partitions[0].UUID != first.Partitions[0].UUID {
		t.Errorf("the UUIDs changed once more: %v", last)
	}

	next := machinetest.New(t, nil)
	old, own := 0, 0
	for i, s := range states {
		next.PowerOn(s.World)
		table := named(next)
		_, err := layout.Find(table, layout.Root)
		made := err == nil
		switch {
		case table.Disk == disk && table.Partitions[0].UUID == esp && !made:
			old++
		case table.Disk != disk && table.Partitions[0].UUID == layout.OwnESP(esp, table.Disk) && made:
			own++
		default:
			t.Errorf("%s: the disk is %v, its ESP %v; root partition: %v", s.How, table.Disk, table.Partitions[0].UUID, made)
		}
		if i%(len(states)/12+1) != 0 {
			continue
		}
		for range 6 {
			if end = next.Boot(); end != "reboot" {
				break
			}
			named(next)
		}
		if end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", s.How, end, next.Said.String())
		}
		if err := next.Provisioned(); err != nil {
			t.Errorf("%s: %v", s.How, err)
		}
		if table := named(next); table.Disk == disk || table.Partitions[0].UUID == esp {
			t.Errorf("%s: the disk stays %v, its ESP %v", s.How, table.Disk, table.Partitions[0].UUID)
		}
	}
	if old == 0 || own == 0 {
		t.Errorf("%d states with the image's UUIDs, %d with others", old, own)
	}

	// IDs that an installation gave are in the firmware's boot entry.
	m.PowerOn(m.Installed(machinetest.DiskSize))
	before, _, err := m.Table()
	m.Must(err)
	if end := m.Run(); end != "system" {
		t.Fatalf("ends in %s", end)
	}
	if after, _, err := m.Table(); err != nil || after.Disk != before.Disk || after.Partitions[0].UUID != before.Partitions[0].UUID {
		t.Errorf("after an installation: the disk is %v, %v", after.Disk, err)
	}
}
