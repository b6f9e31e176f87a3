package agent

import (
	"fmt"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/host"
)

// observeTable reads the partition table and what it says about the slots.
func (a *Agent) observeTable() error {
	table, health, err := bootdisk.Table(a.Disks, a.Disk)
	if err != nil {
		return fmt.Errorf("partition table of %s: %w", a.Disk.Name, err)
	}
	a.Table = table
	if layout.IsInstaller(table) {
		a.State.Table = slot.TableInstaller
		a.LoadAllDrivers()
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
