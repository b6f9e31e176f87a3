// Package sysimage opens the system image at the recovery console: for the drivers,
// certificates and settings that the initramfs does not have.
//
// It refuses every other content than the one that this console's own UKI names,
// and reads it through dm-verity alone, as a boot does. It opens nothing in a
// running system, which has its image at / already.
package sysimage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/hw"
)

const (
	// Directory is where the image is mounted, as in a boot.
	Directory = "/sysroot"
	// device is the name of its verity device, as in a boot.
	device = "system"
)

// Open mounts the image and returns where. One that is mounted already stays. It
// uses Disks, Firmware, Kernel, Mapper and Mounts; root is where the initramfs is.
func Open(m hw.Machine, root string) (string, error) {
	directory := filepath.Join(root, Directory)
	if mounted(directory) {
		return directory, nil
	}
	text, err := os.ReadFile(filepath.Join(root, contract.Path))
	if err != nil {
		return "", fmt.Errorf("this is not the recovery console: %w", err)
	}
	c, err := contract.Parse(text)
	if err != nil {
		return "", err
	}
	if err := open(m, c, directory); err != nil {
		return "", fmt.Errorf("the system image of version %s does not open: %w", c.Version, err)
	}
	return directory, nil
}

func open(m hw.Machine, c *contract.Contract, directory string) error {
	d, err := bootdisk.Disk(m.Disks, m.Firmware)
	if err != nil {
		return err
	}
	table, _, err := bootdisk.Table(m.Disks, d)
	if err != nil {
		return fmt.Errorf("partition table of %s: %w", d.Name, err)
	}
	slot, named := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if !slot.Valid() || !named {
		return errors.New("no slot holds it")
	}
	v, err := hw.Verity{Name: device, Params: c.VerityParams(), Root: c.Root()}.InSlot(m.Disks, d, table, slot)
	if err != nil {
		return err
	}
	if err := m.Kernel.Load("dm_verity", "erofs"); err != nil {
		return err
	}
	node, err := m.Mapper.OpenVerity(v)
	if err == nil {
		err = m.Mounts.Mount(node, directory, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, "")
	}
	if err != nil {
		return errors.Join(err, closeDevice(m.Mapper))
	}
	return nil
}

// closeDevice takes away what a failure has left; it may be nothing.
func closeDevice(m hw.Mapper) error {
	err := m.Close(device)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mounted reports whether something is mounted there.
func mounted(directory string) bool {
	var here, above unix.Stat_t
	return unix.Stat(directory, &here) == nil && unix.Stat(filepath.Dir(directory), &above) == nil && here.Dev != above.Dev
}
