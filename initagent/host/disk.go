package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/initagent/bootdisk"
)

// diskTimeout is how long the disk may take to appear. USB disks take seconds.
const diskTimeout = 20 * time.Second

// WayTimeout is how long the controller that the firmware started from may take
// to show the disk before the others are asked, too. The kernel itself gives a USB
// disk a second to settle (usb-storage.delay_use).
const WayTimeout = 3 * time.Second

// LoadDrivers gives devices their modules. Other mass storage than that on the way
// the firmware took can wait for the system: an empty SATA controller takes as long
// as half the boot. The choice of the disk stays the same, since bootdisk.Disk
// prefers the one on that way; when it is not there, all are loaded after all.
func (h *Host) LoadDrivers() error {
	if way, err := h.Firmware.BootedFrom(); err == nil {
		h.Way = way
	}
	_, err := h.Kernel.Coldplug(h.Way)
	return err
}

// LoadAllDrivers is for anyone who needs more disks than the machine's own.
func (h *Host) LoadAllDrivers() {
	h.Way = nil
	if _, err := h.Kernel.Coldplug(nil); err != nil {
		h.Log.Say("%v", err)
	}
}

// Attended runs what a person works with, and gives what they plug in its driver
// meanwhile: nothing else does so in the initramfs. The TPM must have learned that the
// boot has ended.
func (h *Host) Attended(run func() error) error {
	ctx, stop := context.WithCancel(context.Background())
	var plugging sync.WaitGroup
	plugging.Go(func() { h.Kernel.Hotplug(ctx) })
	defer plugging.Wait() // the boot may go on and load drivers itself
	defer stop()
	return run()
}

// FindDisk waits for the disk that this system was started from.
func (h *Host) FindDisk() error {
	start := h.Now()
	for {
		d, err := bootdisk.Disk(h.Disks, h.Firmware)
		// A copy of the disk elsewhere, as on USB, may show itself first. One behind a
		// controller that hides it (VMD) has a longer way than the firmware names.
		if err == nil && d.Behind(h.Way) {
			h.Disk = d
			h.Log.Say("disk %s: %s, %d MiB", d.Name, strings.TrimSpace(d.Model+" "+d.Serial), int64(d.Sectors)*int64(d.SectorSize)>>20)
			return nil
		}
		if err != nil && !errors.Is(err, bootdisk.ErrNone) {
			return err
		}
		waited := h.Now().Sub(start)
		if err != nil && waited > diskTimeout {
			return fmt.Errorf("waited %s: %w", diskTimeout, err)
		}
		if waited > WayTimeout {
			h.Way = nil // it is elsewhere: all disks count
		}
		// A hub or a controller that has just got its driver shows its devices
		// a little later.
		if tried, err := h.Kernel.Coldplug(h.Way); err != nil || tried == 0 {
			h.Sleep(20 * time.Millisecond)
		}
	}
}

// PutTable puts a table on the disk. The kernel, which lets go of no partition that
// is in use, reads it at the next boot. Cut before it, the old table stands; cut
// during it, one of the two copies is good (gpt.Table.Write).
func (h *Host) PutTable(t *gpt.Table) error {
	f, err := h.Disks.Open(h.Disk, true)
	if err != nil {
		return err
	}
	err = errors.Join(t.Write(f), f.Close())
	if err != nil {
		return fmt.Errorf("write the partition table of %s: %w", h.Disk.Name, err)
	}
	return nil
}

// WriteTable puts a table on the disk and makes the kernel use it.
func (h *Host) WriteTable(t *gpt.Table) error {
	if err := h.PutTable(t); err != nil {
		return err
	}
	return h.Disks.Reread(h.Disk)
}
