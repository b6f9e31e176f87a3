package hw

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/sysblock"
)

// sectorUnit is what sysfs counts sizes in, whatever a disk's sectors are.
const sectorUnit = 512

// LinuxDisks finds disks in sysfs and opens them in /dev. NewLinuxDisks makes one.
type LinuxDisks struct {
	Sys, Dev string
	load     func(modules ...string) error // nil where what is needed is there
	mapper   deviceMapper
}

// NewLinuxDisks are the disks of the machine that this runs on. kernel loads what the kernel
// needs to join the partitions of a slot that has grown; nil where that is there already.
func NewLinuxDisks(kernel Kernel) LinuxDisks {
	l := LinuxDisks{Sys: "/sys", Dev: "/dev", mapper: kernelsMapper()}
	if kernel != nil {
		l.load = kernel.Load
	}
	return l
}

// List implements Disks. What is not a whole disk, and disks without a medium, are
// left out.
func (l LinuxDisks) List() ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(l.Sys, "block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no block device has appeared yet
	}
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	var disks []Disk
	for _, e := range entries {
		if l.device(e.Name()).NotADisk() != "" {
			continue
		}
		size, err := l.number(e.Name(), "size")
		if err != nil || size == 0 {
			continue
		}
		sector, err := l.number(e.Name(), "queue/logical_block_size")
		if err != nil || sector < sectorUnit {
			continue
		}
		d := Disk{
			Name:       e.Name(),
			Model:      l.text(e.Name(), "device/model"),
			Serial:     l.serial(e.Name()),
			SectorSize: int(sector),
			Sectors:    size * sectorUnit / sector,
		}
		if ro, err := l.number(e.Name(), "ro"); err == nil {
			d.ReadOnly = ro != 0
		}
		for _, way := range l.ways(e.Name(), names) {
			if d.PCI == nil {
				d.PCI = way
			} else {
				d.OtherPCI = append(d.OtherPCI, way)
			}
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// pciAddress is how sysfs names a PCI function: domain, bus, device, function.
var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:([0-9a-f]{2})\.([0-7])$`)

// place is where a disk lies in the tree of devices; empty where sysfs does not say.
func (l LinuxDisks) place(disk string) string {
	place, err := filepath.EvalSymlinks(filepath.Join(l.Sys, "block", disk))
	if err != nil {
		return ""
	}
	return place
}

// device is what sysfs says of a block device.
func (l LinuxDisks) device(name string) sysblock.Device {
	return sysblock.Device{Name: name, Place: l.place(name), Hidden: l.text(name, "hidden") == "1", Zoned: l.text(name, "queue/zoned")}
}

// ways reads the ways to a disk's controllers off the disk's place in sysfs, or off
// those of the paths to it.
func (l LinuxDisks) ways(disk string, all []string) (ways []Way) {
	for _, name := range append([]string{disk}, sysblock.Paths(disk, all)...) {
		if way, _ := pciFunctions(l.place(name)); len(way) > 0 {
			ways = append(ways, way)
		}
	}
	return ways
}

// pciFunctions are the PCI functions that a place in sysfs leads through, and the
// place of the last one.
func pciFunctions(place string) (way []bootoption.Function, last string) {
	elements := strings.Split(place, "/")
	for i, element := range elements {
		if m := pciAddress.FindStringSubmatch(element); m != nil {
			device, _ := strconv.ParseUint(m[1], 16, 8) // two hexadecimal digits
			way = append(way, bootoption.Function{Device: uint8(device), Function: m[2][0] - '0'})
			last = strings.Join(elements[:i+1], "/")
		}
	}
	return way, last
}

func (l LinuxDisks) text(disk, attribute string) string {
	b, _ := os.ReadFile(filepath.Join(l.Sys, "block", disk, attribute))
	return strings.TrimSpace(string(b))
}

// serial is where the drivers put it: virtio beside the disk, the others on
// the device.
func (l LinuxDisks) serial(disk string) string {
	if s := l.text(disk, "serial"); s != "" {
		return s
	}
	return l.text(disk, "device/serial")
}

func (l LinuxDisks) number(disk, attribute string) (uint64, error) {
	return strconv.ParseUint(l.text(disk, attribute), 10, 63)
}

// Open implements Disks.
func (l LinuxDisks) Open(d Disk, write bool) (File, error) {
	return openDevice(filepath.Join(l.Dev, d.Name), write)
}

// OpenPartition implements Disks.
func (l LinuxDisks) OpenPartition(d Disk, r layout.Role, write bool) (File, error) {
	path, err := l.PartitionPath(d, r)
	if err != nil {
		return nil, err
	}
	return openDevice(path, write)
}

func openDevice(path string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	return os.OpenFile(path, flag|unix.O_CLOEXEC, 0)
}

// PartitionPath implements Disks.
func (l LinuxDisks) PartitionPath(d Disk, r layout.Role) (string, error) {
	f, err := l.Open(d, false)
	if err != nil {
		return "", err
	}
	defer f.Close()
	table, _, err := gpt.Read(f, d.Sectors, d.SectorSize)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.Name, err)
	}
	if r == layout.ESP {
		p, err := layout.FindESP(table, d.ESP)
		if err != nil {
			return "", fmt.Errorf("%s: %w", d.Name, err)
		}
		return l.nodeOf(d, p)
	}
	return l.rolePath(d, table, r)
}

// rolePath is the device node of the partition that the table gives a role, or of the device
// that joins its two extents (layout.Opened). A second extent that the kernel does not know
// is left out, too.
func (l LinuxDisks) rolePath(d Disk, t *gpt.Table, r layout.Role) (string, error) {
	parts, err := layout.Opened(t, r)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.Name, err)
	}
	var extents []extent
	for i, p := range parts {
		e, err := l.extent(d, p)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return "", err
		}
		extents = append(extents, e)
	}
	if len(extents) == 1 {
		return extents[0].node, nil
	}
	return l.joined(r, extents)
}

func (l LinuxDisks) nodeOf(d Disk, p gpt.Partition) (string, error) {
	e, err := l.extent(d, p)
	return e.node, err
}

// extent is a partition as the kernel has it, by its number. The kernel spells partitions of
// vda vda2 and of nvme0n1 nvme0n1p2; sysfs says which. Its place must be the table's: a
// kernel that has not read a new table yet would open another partition.
func (l LinuxDisks) extent(d Disk, p gpt.Partition) (extent, error) {
	directory := filepath.Join(l.Sys, "block", d.Name)
	entries, err := os.ReadDir(directory)
	if err != nil {
		return extent{}, fmt.Errorf("list partitions of %s: %w", d.Name, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), d.Name) {
			continue
		}
		if n, err := l.number(d.Name, filepath.Join(e.Name(), "partition")); err == nil && n == uint64(p.Number) {
			if err := l.samePlace(d, e.Name(), p); err != nil {
				return extent{}, err
			}
			return extent{filepath.Join(l.Dev, e.Name()), l.text(d.Name, filepath.Join(e.Name(), "dev")), int64(p.Sectors()) * int64(d.SectorSize)}, nil
		}
	}
	return extent{}, fmt.Errorf("the kernel does not know partition %d (%s) of %s: %w", p.Number, p.Label, d.Name, fs.ErrNotExist)
}

// samePlace refuses a partition of the kernel's that lies elsewhere than in the table, or has
// another length.
func (l LinuxDisks) samePlace(d Disk, name string, p gpt.Partition) error {
	at, err := l.number(d.Name, filepath.Join(name, "start"))
	if err != nil {
		return fmt.Errorf("where %s begins: %w", name, err)
	}
	if off := int64(p.First) * int64(d.SectorSize); off != int64(at)*sectorUnit {
		return fmt.Errorf("%s is elsewhere than the partition table of %s has it (%d bytes, %d in the table): the kernel has not read the table that is there now; start again",
			name, d.Name, int64(at)*sectorUnit, off)
	}
	size, err := l.number(d.Name, filepath.Join(name, "size"))
	if err != nil {
		return fmt.Errorf("how long %s is: %w", name, err)
	}
	if want := int64(p.Sectors()) * int64(d.SectorSize); want != int64(size)*sectorUnit {
		return fmt.Errorf("%s is not as long as the partition table of %s has it (%d bytes, %d in the table): the kernel has not read the table that is there now; start again",
			name, d.Name, int64(size)*sectorUnit, want)
	}
	return nil
}

// Reread implements Disks. The kernel refuses while a partition is in use;
// something that has just been closed may be for a moment longer.
func (l LinuxDisks) Reread(d Disk) error {
	l.part()
	f, err := os.OpenFile(filepath.Join(l.Dev, d.Name), os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for try := 0; ; try++ {
		err = unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0)
		if !errors.Is(err, unix.EBUSY) || try == 50 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("read the partition table of %s again: %w", d.Name, err)
	}
	return nil
}
