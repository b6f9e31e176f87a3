// Package sysblock tells, from what Linux says of a block device in sysfs, whether it
// is a whole disk that a system can be installed on and start from. Boot, commands
// and installer judge alike.
//
// It refuses to guess what a device without a driver's name could be: what is not
// known here as something else counts as a disk.
package sysblock

import (
	"regexp"
	"strings"
)

// A Device is a whole block device in sysfs (an entry of /sys/block).
type Device struct {
	Name   string // such as nvme0n1
	Place  string // where the entry leads in /sys/devices; empty where it does not tell
	Hidden bool   // attribute hidden: a path to a disk that has another name
	Zoned  string // attribute queue/zoned
}

// kinds are devices that are not disks, by their names in Linux's drivers.
var kinds = []struct{ name, what string }{
	{`loop\d+`, "a loop device"}, {`ram\d+`, "memory"}, {`zram\d+`, "memory"}, {`pmem\d.*`, "memory that firmware does not start from"},
	{`dm-\d+`, "made by the device mapper"}, {`md(\d+|_.*)`, "a RAID of other disks"}, {`bcache\d+`, "a cache over other disks"}, {`zd\d+`, "a ZFS volume"},
	{`sr\d+`, "a CD drive"}, {`fd\d+`, "a floppy drive"},
	{`nbd\d+`, "a disk in the network"}, {`rbd\d+`, "a disk in the network"}, {`drbd\d+`, "a disk in the network"},
	{`mmcblk\d+boot\d+`, "a boot area of an eMMC"}, {`mmcblk\d+rpmb`, "the replay-protected area of an eMMC"}, {`mmcblk\d+gp\d+`, "a general-purpose area of an eMMC"},
	{`mtdblock.*`, "flash memory without a controller"}, {`mtd\d.*`, "flash memory without a controller"}, {`ubiblock.*`, "flash memory without a controller"},
	{`nvme\d+c\d+n\d+`, "a path to an NVMe disk"}, {`ublkb\d+`, "a program's device"}, {`nullb\d+`, "a device that keeps nothing"},
}

var names = func() (all []*regexp.Regexp) {
	for _, k := range kinds {
		all = append(all, regexp.MustCompile("^"+k.name+"$"))
	}
	return all
}()

// NotADisk says what a device is that is not a whole disk to install on; empty for
// one that is.
func (d Device) NotADisk() string {
	if d.Hidden {
		return "a path to a disk"
	}
	for i, name := range names {
		if name.MatchString(d.Name) {
			return kinds[i].what
		}
	}
	// Drivers that make devices out of nothing put them there. The NVMe disk that
	// has several paths lies below virtual/nvme-subsystem.
	if strings.Contains(d.Place, "/devices/virtual/block/") {
		return "a virtual device"
	}
	if d.Zoned == "host-managed" {
		return "a disk that is written in zones only"
	}
	return ""
}

var head, path = regexp.MustCompile(`^nvme(\d+)n(\d+)$`), regexp.MustCompile(`^nvme(\d+)c\d+n(\d+)$`)

// Paths returns, of the entries of /sys/block, the paths to an NVMe disk with native
// multipath (Linux, drivers/nvme/host/multipath.c: nvmeScCnN leads to nvmeSnN). The
// disk itself lies behind no controller.
func Paths(disk string, entries []string) (paths []string) {
	d := head.FindStringSubmatch(disk)
	if d == nil {
		return nil
	}
	for _, e := range entries {
		if p := path.FindStringSubmatch(e); p != nil && p[1] == d[1] && p[2] == d[2] {
			paths = append(paths, e)
		}
	}
	return paths
}
