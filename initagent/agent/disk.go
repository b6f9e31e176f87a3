package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/hw"
)

// errTwoDisks ends the boot: writing to the wrong disk of two that look alike
// cannot be undone.
var errTwoDisks = errors.New("two disks carry the partition that this system was started from")

// findDisk waits for the disk that holds the ESP the boot manager was started
// from. The loader names it by partition UUID; where it does not, the disk is
// the only one with our layout.
func (a *Agent) findDisk() error {
	esp, err := a.Firmware.LoaderString("LoaderDevicePartUUID")
	if err != nil {
		return err
	}
	esp = strings.ToLower(esp)
	deadline := a.Now().Add(diskTimeout)
	for {
		found, unread, err := a.candidates(esp)
		if err != nil {
			return err
		}
		found = a.startedFrom(found)
		switch {
		case len(found) == 1:
			a.disk = found[0]
			a.Log.Say("disk %s: %s %s, %d MiB", a.disk.Name, a.disk.Model, a.disk.Serial, int64(a.disk.Sectors)*int64(a.disk.SectorSize)>>20)
			return nil
		case len(found) > 1:
			return fmt.Errorf("%w (%s and %s): detach the one that does not belong here", errTwoDisks, found[0].Name, found[1].Name)
		case a.Now().After(deadline):
			none := fmt.Errorf("no disk has the partition %s that this system was started from (waited %s)", esp, diskTimeout)
			return errors.Join(append([]error{none}, unread...)...)
		}
		// A hub or a controller that has just got its driver shows its devices
		// a little later.
		if tried, err := a.Kernel.Coldplug(); err != nil || tried == 0 {
			a.Sleep(20 * time.Millisecond)
		}
	}
}

// startedFrom picks, of several disks that carry the same partition, those on
// the controller that the firmware started from. Where it does not say, or names
// none of them, all stay.
func (a *Agent) startedFrom(found []hw.Disk) []hw.Disk {
	if len(found) < 2 {
		return found
	}
	way, err := a.Firmware.BootedFrom()
	if err != nil || len(way) == 0 {
		return found
	}
	elsewhere := func(d hw.Disk) bool { return !slices.Equal(d.PCI, way) }
	if near := slices.DeleteFunc(slices.Clone(found), elsewhere); len(near) > 0 {
		return near
	}
	return found
}

// candidates are the disks present now that can be the one. Why others could not
// be read explains, where there is none, what became of it.
func (a *Agent) candidates(esp string) (found []hw.Disk, unread []error, err error) {
	disks, err := a.Disks.List()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range disks {
		table, _, err := a.readTable(d)
		if err != nil {
			// Not ours, not ready, or damaged.
			unread = append(unread, fmt.Errorf("%s: %w", d.Name, err))
			continue
		}
		first, ok := table.ByNumber(layout.ESPNumber)
		if !ok || first.Type != layout.TypeESP {
			continue
		}
		second, ok := table.ByNumber(layout.SlotA.SystemNumber())
		if esp == "" && ok && second.Label == layout.SlotA.SystemLabel() || first.UUID.String() == esp {
			found = append(found, d)
		}
	}
	return found, unread, nil
}

func (a *Agent) readTable(d hw.Disk) (*gpt.Table, gpt.Health, error) {
	f, err := a.Disks.Open(d, false)
	if err != nil {
		return nil, gpt.Health{}, err
	}
	defer f.Close()
	return gpt.Read(f, d.Sectors, d.SectorSize)
}

// observeTable reads the partition table and what it says about the slots.
func (a *Agent) observeTable() error {
	table, health, err := a.readTable(a.disk)
	if err != nil {
		return fmt.Errorf("partition table of %s: %w", a.disk.Name, err)
	}
	a.table = table
	a.state.Booted, a.state.TreeNamed = layout.FindSlot(table, layout.SystemUUID(a.contract.Root()), layout.VerityUUID(a.contract.Root()))
	plan, err := layout.NewPlan(table, a.contract.SlotSize, a.Random)
	switch {
	case err != nil && a.state.TreeNamed:
		// It was complete once, or the tree would not carry its name. A
		// partition beside ours is a reason to complain, not to stop.
		a.state.Table = slot.TableComplete
	case err != nil:
		return err
	case len(plan.Changes) > 0:
		a.state.Table = slot.TableNew
	case !health.OK():
		a.state.Table = slot.TableDamaged
		if a.facts.Healed == slot.NotTried {
			a.Log.Say("partition table of %s: %s", a.disk.Name, health)
		}
	default:
		a.state.Table = slot.TableComplete
	}
	return nil
}

// observeESP lists the UKIs. It reads the file system itself: nothing is
// mounted for it, and a damaged one costs no boot.
func (a *Agent) observeESP() error {
	a.state.Trial, a.state.Fallback = false, false
	running, err := a.Firmware.LoaderString("LoaderBootCountPath")
	if err != nil {
		return err
	}
	a.state.Trial = running != ""
	names, err := a.ukiNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		if !a.isOurs(n) && !n.Bad() {
			a.state.Fallback = true
		}
	}
	return nil
}
