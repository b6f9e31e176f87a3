package sysblock

import (
	"slices"
	"testing"
)

// FAULTS 112 (M3, M4): names and places as kernels give them.
func TestNotADisk(t *testing.T) {
	const virtual = "/sys/devices/virtual/block/"
	for _, d := range []Device{
		{Name: "sda", Place: "/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"}, {Name: "sdaa"}, {Name: "vda"}, {Name: "xvda", Place: "/sys/devices/vbd-51712/block/xvda"}, {Name: "hda"},
		{Name: "mmcblk0", Place: "/sys/devices/platform/80860F14:00/mmc_host/mmc0/mmc0:0001/block/mmcblk0"}, {Name: "mmcblk12"},
		{Name: "nvme0n1", Place: "/sys/devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1", Zoned: "none"}, {Name: "nvme10n12"},
		{Name: "nvme0n1", Place: "/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"},
		{Name: "nvme1n1", Place: "/sys/devices/virtual/nvme-fabrics/ctl/nvme1/nvme1n1"}, {Name: "sdb", Zoned: "host-aware"},
	} {
		if what := d.NotADisk(); what != "" {
			t.Errorf("%+v counts as %s", d, what)
		}
	}
	for _, d := range []Device{
		{Name: "mmcblk0boot0"}, {Name: "mmcblk0boot1"}, {Name: "mmcblk0rpmb"}, {Name: "mmcblk1gp0"}, {Name: "mtdblock0"}, {Name: "mtdblock3"}, {Name: "zd0", Place: virtual + "zd0"}, {Name: "zd16"},
		{Name: "bcache0"}, {Name: "md0"}, {Name: "md127"}, {Name: "md_d0"}, {Name: "dm-0"}, {Name: "loop7"}, {Name: "ram0"}, {Name: "zram0"}, {Name: "nbd0"}, {Name: "sr0"}, {Name: "fd0"}, {Name: "pmem0"}, {Name: "rbd0"}, {Name: "drbd1"},
		{Name: "nvme0c0n1", Hidden: true}, {Name: "nvme0c1n1"}, {Name: "anything0", Place: virtual + "anything0"}, {Name: "sdz", Hidden: true}, {Name: "sdc", Zoned: "host-managed"}, {Name: "ubiblock0_1"}, {Name: "ublkb0"}, {Name: "nullb0"},
	} {
		if d.NotADisk() == "" {
			t.Errorf("%+v counts as a disk", d)
		}
	}
}

func TestPaths(t *testing.T) {
	entries := []string{"nvme0c0n1", "nvme0c1n1", "nvme0c0n2", "nvme0n1", "nvme0n2", "nvme1c0n1", "nvme10c0n1", "sda"}
	for disk, want := range map[string][]string{
		"nvme0n1": {"nvme0c0n1", "nvme0c1n1"}, "nvme0n2": {"nvme0c0n2"}, "nvme1n1": {"nvme1c0n1"}, "nvme2n1": nil, "sda": nil, "nvme0c0n1": nil,
	} {
		if got := Paths(disk, entries); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", disk, got, want)
		}
	}
}
