// Package hw is everything that initagent does to a machine: its disks, its
// kernel, its firmware and its power, each behind a small interface, and the
// Linux side of each. It decides nothing.
//
// It refuses to name a device: disks are listed, and whoever asks finds the
// right one by what is on it.
package hw

import (
	"io"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/verity"
)

// A Machine holds everything with an effect. It is built once, in main, and
// passed on.
type Machine struct {
	Disks    Disks
	Firmware Firmware
	Kernel   Kernel
	Mapper   Mapper
	Mounts   Mounts
	Power    Power
	Log      *Log
	// Now is the clock. It may be years off: nothing that matters trusts it.
	Now func() time.Time
}

// A Disk is a whole disk.
type Disk struct {
	Name       string // the kernel's, such as nvme0n1; good for this boot only
	Model      string
	Serial     string
	SectorSize int
	Sectors    uint64
}

// A File is an open disk or partition.
type File interface {
	block.Device
	io.Closer
}

// Disks is the machine's storage.
type Disks interface {
	// List returns the whole disks present now.
	List() ([]Disk, error)
	// Open opens a whole disk, for its partition table alone: the kernel keeps
	// separate caches for a disk and its partitions.
	Open(d Disk, write bool) (File, error)
	// OpenPartition opens a partition by its GPT entry number.
	OpenPartition(d Disk, number int, write bool) (File, error)
	// PartitionPath is the partition's device node.
	PartitionPath(d Disk, number int) (string, error)
	// Reread makes the kernel read a disk's partition table again.
	Reread(d Disk) error
}

// Firmware is what UEFI told the boot manager and the stub.
type Firmware interface {
	// LoaderString reads one of the boot loader interface's string variables
	// (https://systemd.io/BOOT_LOADER_INTERFACE/); absent is "".
	LoaderString(name string) (string, error)
	// Flag reads a one-byte variable of the UEFI global namespace, such as
	// SecureBoot; absent is false.
	Flag(name string) (bool, error)
}

// Kernel loads drivers.
type Kernel interface {
	// Coldplug loads the drivers of all devices present now, and reports how
	// many modules it tried for the first time.
	Coldplug() (int, error)
	// Load loads one module and what it depends on. A built-in one is fine.
	Load(names ...string) error
}

// Verity is what a dm-verity device is made from. All of it comes from the
// signed UKI but the two device nodes.
type Verity struct {
	Name                   string // of the device-mapper device
	DataDevice, HashDevice string
	Params                 verity.Params
	Root                   verity.Root
	// RestartOnCorruption makes the kernel restart the machine when a block is
	// corrupt, instead of returning an I/O error.
	RestartOnCorruption bool
}

// Crypt is what a dm-crypt device is made from.
type Crypt struct {
	Name   string
	UUID   string // device-mapper UUID
	Device string
	Cipher string // such as aes-xts-plain64
	// Offset and Length in bytes; IVTweak in 512-byte sectors.
	Offset, Length int64
	IVTweak        uint64
	SectorSize     int
	VolumeKey      []byte // stays the caller's, who wipes it
}

// Mapper is the kernel's device mapper.
type Mapper interface {
	// OpenVerity returns the device node.
	OpenVerity(v Verity) (string, error)
	// OpenCrypt returns the device node.
	OpenCrypt(c Crypt) (string, error)
	Close(name string) error
}

// Mounts is the mount table.
type Mounts interface {
	// Base mounts what every Linux program expects: /proc, /sys, /dev, /run
	// and the kernel's security files.
	Base() error
	// Firmware mounts the firmware's variables, once the kernel can.
	Firmware() error
	Mount(source, target, fstype string, flags uintptr, data string) error
	Unmount(target string) error
	// SwitchRoot moves the base mounts into newRoot, makes it the root, empties
	// the initramfs, and executes init. It returns only an error.
	SwitchRoot(newRoot string, init []string) error
}

// Power ends the boot.
type Power interface {
	// Reboot does not return unless the kernel refuses.
	Reboot() error
	PowerOff() error
}
