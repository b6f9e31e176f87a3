package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/host"
)

// wayTimeout is how long the controller that the firmware started from may take
// to show the disk before the others are asked, too. The kernel itself gives a USB
// disk a second to settle (usb-storage.delay_use).
const wayTimeout = 3 * time.Second

// loadDrivers gives devices their modules. Other mass storage than that on the way
// the firmware took can wait for the system: an empty SATA controller takes as long
// as half the boot. The choice of the disk stays the same, since bootdisk.Disk
// prefers the one on that way; when it is not there, all are loaded after all.
func (a *Agent) loadDrivers() error {
	if way, err := a.Firmware.BootedFrom(); err == nil {
		a.Way = way
	}
	_, err := a.Kernel.Coldplug(a.Way)
	return err
}

// loadAllDrivers is for whoever needs more disks than the machine's own.
func (a *Agent) loadAllDrivers() {
	a.Way = nil
	if _, err := a.Kernel.Coldplug(nil); err != nil {
		a.Log.Say("%v", err)
	}
}

// attended runs what a person works with, and gives what they plug in its driver
// meanwhile: nothing else does so in the initramfs. The TPM must have learned that the
// boot has ended.
func (a *Agent) attended(run func() error) error {
	ctx, stop := context.WithCancel(context.Background())
	var plugging sync.WaitGroup
	plugging.Go(func() { a.Kernel.Hotplug(ctx) })
	defer plugging.Wait() // the boot may go on and load drivers itself
	defer stop()
	return run()
}

// findDisk waits for the disk that this system was started from.
func (a *Agent) findDisk() error {
	start := a.Now()
	for {
		d, err := bootdisk.Disk(a.Disks, a.Firmware)
		// A copy of the disk elsewhere, as on USB, may show itself first. One behind a
		// controller that hides it (VMD) has a longer way than the firmware names.
		if err == nil && d.Behind(a.Way) {
			a.Disk = d
			a.Log.Say("disk %s: %s, %d MiB", d.Name, strings.TrimSpace(d.Model+" "+d.Serial), int64(d.Sectors)*int64(d.SectorSize)>>20)
			return nil
		}
		if err != nil && !errors.Is(err, bootdisk.ErrNone) {
			return err
		}
		waited := a.Now().Sub(start)
		if err != nil && waited > diskTimeout {
			return fmt.Errorf("waited %s: %w", diskTimeout, err)
		}
		if waited > wayTimeout {
			a.Way = nil // it is elsewhere: all disks count
		}
		// A hub or a controller that has just got its driver shows its devices
		// a little later.
		if tried, err := a.Kernel.Coldplug(a.Way); err != nil || tried == 0 {
			a.Sleep(20 * time.Millisecond)
		}
	}
}

// observeTable reads the partition table and what it says about the slots.
func (a *Agent) observeTable() error {
	table, health, err := bootdisk.Table(a.Disks, a.Disk)
	if err != nil {
		return fmt.Errorf("partition table of %s: %w", a.Disk.Name, err)
	}
	a.Table = table
	if layout.IsInstaller(table) {
		a.State.Table = slot.TableInstaller
		a.loadAllDrivers()
		return nil
	}
	if a.Disk.ReadOnly {
		a.State.Table = slot.TableReadOnly // nothing that a boot has to keep could be kept
		return nil
	}
	a.State.Booted, a.State.TreeNamed = layout.FindSlot(table, layout.SystemUUID(a.Contract.Root()), layout.VerityUUID(a.Contract.Root()))
	plan, err := layout.NewPlan(table, a.Contract.SlotSize, a.Random)
	switch {
	case err != nil && a.State.TreeNamed:
		// It was complete once, or the tree would not carry its name. A
		// partition beside ours is a reason to complain, not to stop.
		a.State.Table = slot.TableComplete
	case err != nil:
		return err
	case len(plan.Changes) > 0:
		a.State.Table = slot.TableNew
	case !health.OK():
		a.State.Table = slot.TableDamaged
		if a.facts.Healed == slot.NotTried {
			a.Log.Say("partition table of %s: %s", a.Disk.Name, health)
		}
	default:
		a.State.Table = slot.TableComplete
	}
	return nil
}

// observeESP lists the UKIs. It reads the file system itself: nothing is
// mounted for it, and a damaged one costs no boot.
func (a *Agent) observeESP() error {
	a.State.Trial, a.State.Fallback, a.Names = false, false, nil
	counted, err := a.Firmware.LoaderString(host.CountVariable)
	if err != nil {
		return err
	}
	a.State.Trial = counted != ""
	if a.Names, err = a.UKINames(); err != nil {
		return err
	}
	// A boot manager that could not rename the file counts nothing, and does not
	// mention it: the system is on trial all the same.
	if booted, known := a.BootedName(); known && booted.Counted {
		a.State.Trial = true
	}
	for _, n := range a.Names {
		if !a.IsOurs(n) && !n.Bad() {
			a.State.Fallback = true
		}
	}
	return nil
}
