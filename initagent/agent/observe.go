package agent

import (
	"fmt"
	"strings"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
)

// observeKeys says how far the Secure Boot keys have come.
func (a *Agent) observeKeys() error {
	state, err := enroll.Observe(a.Variables)
	if err != nil {
		if a.Contract.SecureBoot == contract.Optional {
			a.State.Keys = bootflow.KeysUnneeded
			return nil
		}
		return err
	}
	a.FirmwareKeys = state
	var wanted secureboot.Wanted
	if a.Left.Pending != nil {
		if wanted, err = secureboot.ParseWanted(a.Left.Pending.Wanted); err != nil {
			return err
		}
	}
	a.State.Keys = bootflow.JudgeKeys(a.State, a.facts, bootflow.Firmware{
		Enforces: rootpart.Enforces(state), SetupMode: state.SetupMode == enroll.On, Compared: enroll.Keys(state, wanted),
	})
	a.facts.Others, a.facts.ModuleKey = setup.OthersWished(&a.Host), setup.ModulesToAsk(&a.Host)
	return nil
}

// observeRoot looks at the root partition, until it is open.
func (a *Agent) observeRoot() error {
	if a.State.Root == bootflow.RootOpen {
		return nil
	}
	root, lock, err := rootpart.Look(a.Disks, a.Disk, a.Table)
	a.State.Root, a.Lock, a.facts.PIN = root, lock, lock.HasPIN()
	if root == bootflow.RootAbsent {
		return err
	}
	if err != nil {
		a.facts.Cause = err.Error()
	}
	return nil
}

// observeLoss tells a root partition that was never finished from one that was lost.
func (a *Agent) observeLoss() error {
	if !a.State.Root.Making() && a.State.Root != bootflow.RootDamaged {
		return nil
	}
	between, err := setup.BetweenBoots(&a.Host)
	if err != nil {
		a.Log.Say("whether the root partition was made before is not known: %v", err)
	}
	judged := bootflow.JudgeRoot(a.State, bootflow.Past{Between: between, Unlocked: a.Left.Unlocked, OwnKeys: a.OwnEnforced()})
	if judged == bootflow.RootDamaged && a.State.Root.Making() {
		a.facts.Cause = "its header is empty, although it was made before"
	}
	a.State.Root = judged
	return nil
}

// observeTable reads the partition table and what it says about the slots.
func (a *Agent) observeTable() error {
	table, health, err := bootdisk.Table(a.Disks, a.Disk)
	if err != nil {
		return fmt.Errorf("partition table of %s: %w", a.Disk.Name, err)
	}
	a.Table = table
	if layout.IsInstaller(table) {
		a.State.Table = bootflow.TableInstaller
		a.LoadAllDrivers()
		return nil
	}
	if a.Disk.ReadOnly {
		a.State.Table = bootflow.TableReadOnly // nothing that a boot has to keep could be kept
		return nil
	}
	a.State.Booted, a.State.TreeNamed = layout.FindSlot(table, layout.SystemUUID(a.Contract.Root()), layout.VerityUUID(a.Contract.Root()))
	plan, err := layout.NewPlan(table, a.Contract.SlotSize, a.Random)
	switch {
	case a.State.TreeNamed && (err != nil || len(plan.Changes) > 0):
		// It was complete once, or the tree would not carry its name: setup.Partition makes
		// all that is missing in one table, and setup.MakeTree comes after it. What is missing
		// now was lost, and its place may hold the data still, or somebody else's; the other
		// copy of the table may have it. A partition beside ours is a reason to complain, not
		// to stop.
		a.State.Table = bootflow.TableComplete
		if err == nil && a.facts.Came(bootflow.OpenVerity) == bootflow.NotTried {
			a.Log.Say("partition table of %s: it was complete once, so that this boot does not %s", a.Disk.Name, strings.Join(plan.Changes, ", "))
		}
	case err != nil:
		return err
	case len(plan.Changes) > 0:
		a.State.Table = bootflow.TableNew
	case !health.OK():
		a.State.Table = bootflow.TableDamaged
		if a.facts.Came(bootflow.Heal) == bootflow.NotTried {
			a.Log.Say("partition table of %s: %s", a.Disk.Name, health)
		}
	default:
		a.State.Table = bootflow.TableComplete
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

// listen begins to notice that somebody asks for the recovery console. It waits
// for nobody: anyone who wants it presses the key at any time until the system takes
// over.
func (a *Agent) listen() {
	a.listener = a.Person.Listen()
	a.Log.Say("press %c for the recovery console", console.Key)
}

// observePerson looks whether the key was pressed.
func (a *Agent) observePerson() {
	if a.listener == nil {
		return
	}
	a.facts.ConsoleAsked = a.facts.ConsoleAsked || a.listener.Asked()
	if a.listener.Touched() {
		a.Log.Show() // somebody wants to see what goes on
	}
}

// stopListening leaves the terminals to what a step asks there, or to what comes
// after the boot.
func (a *Agent) stopListening() {
	if a.listener != nil {
		a.listener.Close()
		a.listener = nil
	}
}

// observeKeepHome looks, once, whether a reset that keeps /home was asked for, or begun.
func (a *Agent) observeKeepHome() {
	if a.homeLooked {
		return
	}
	a.homeLooked = true
	a.facts.KeepHomeAsked = ownstate.KeepHomeAsked(&a.Host)
	if a.facts.KeepHomeAsked && a.State.Trial {
		text := "a reset that keeps /home was asked for, and is not done while a version is on trial: ask again once it is kept"
		a.Log.Say("%s", text)
		a.NoteSelf(journal.State, text)
		a.facts.KeepHomeAsked = false
	}
	note, err := ownstate.KeepHomeNote(&a.Host)
	a.facts.KeepHomeBegun = note != nil || err != nil
}
