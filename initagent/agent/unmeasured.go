package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/setup"
)

// removeUnmeasured takes away what somebody has stored in the firmware for the kernel,
// systemd or this program to obey, and nothing measures. What the kernel has obeyed already is a reason
// to start again, before a secret is released or a console opens.
//
// Each deletion stands for itself: cut between two, the next start finds the rest.
func (a *Agent) removeUnmeasured() error {
	var gone, stay []string
	for _, v := range secureboot.UnmeasuredVariables {
		planted, err := a.remove(v)
		switch {
		case !planted:
			continue
		case err != nil && v.Ignored:
			a.Log.Say("WARNING: the firmware's variable %s, which %s, is no part of this system and is ignored. It cannot be deleted: %v", v.Name, v.Does, err)
			continue
		case err != nil:
			stay = append(stay, v.Name)
			a.Log.Say("WARNING: the firmware's variable %s, which %s, cannot be deleted: %v", v.Name, v.Does, err)
			continue
		}
		a.Log.Say("WARNING: the firmware had a variable %s, which %s. It is no part of this system, and was deleted: somebody was root on this machine, or at its console", v.Name, v.Does)
		a.countDeleted = a.countDeleted || v.Name == host.CountVariable
		if v.Early {
			gone = append(gone, v.Name)
		}
	}
	if len(stay) > 0 {
		a.facts.Planted = fmt.Sprintf("the firmware's variable %s is no part of this system, and cannot be deleted: reset the firmware to its factory settings, its Secure Boot keys too, and have the recovery key at hand for the next start",
			strings.Join(stay, ", "))
	} else if len(gone) > 0 {
		a.facts.Planted, a.facts.PlantedGone = a.afterDeletion(strings.Join(gone, ", "))
	}
	return nil
}

// afterDeletion says what is to be made of a start whose kernel has obeyed what is deleted
// now: another one without it. Where the firmware brings it back, as one that loses what it
// was told, that would go on for ever and nobody would learn why. So the deletion is marked
// on the ESP, which the firmware does not restore, and the next start that finds both
// opens the console. Where the mark cannot be kept, this one does.
//
// A mark can be an old one, which no start could remove, or anybody's: the reason says
// what is known, and what tells the two apart.
//
// The mark follows the deletion. Cut before it, the next start finds no variable and
// is an ordinary one, or finds it again and comes here again; cut while it is written,
// its name counts. It goes in the first start without the variable (forgetDeletion).
func (a *Agent) afterDeletion(names string) (planted string, again bool) {
	planted = fmt.Sprintf("the kernel has obeyed %s, which was no part of this system and is deleted", names)
	marked, err := a.markDeletion()
	switch {
	case err != nil:
		return fmt.Sprintf("%s. That cannot be noted on the ESP (%v), so the machine does not start again by itself: `exit` restarts it", planted, err), false
	case marked:
		return fmt.Sprintf("%s, which is no part of this system, is there again after an earlier start has deleted it. It is deleted now, too, and `exit` restarts without it. If it comes back, the firmware restores it: "+
			"update the firmware, or reset it to its factory settings, its Secure Boot keys too, and have the recovery key at hand for the next start; "+
			"a virtual machine whose variables are restored needs a copy of them without it", names), false
	}
	return planted, true
}

// markDeletion puts the mark on the ESP, and reports whether it was there.
func (a *Agent) markDeletion() (there bool, err error) {
	if err := errors.Join(a.loadDrivers(), a.findDisk()); err != nil {
		return false, err
	}
	err = a.ReadESP(func(files fs.FS) error {
		_, err := fs.Stat(files, firstboot.DeletionMark)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return false, a.WriteESP(func(dir hw.ESPDir) error {
		if err := dir.MakeDirectory(firstboot.Directory); err != nil {
			return err
		}
		if err := dir.SyncDir(path.Dir(firstboot.Directory)); err != nil {
			return err
		}
		return enroll.Replace(dir, firstboot.DeletionMark, []byte("a variable of the firmware was deleted\n"))
	})
}

// readLeft reads what earlier starts have left on the ESP.
func (a *Agent) readLeft() error {
	err := setup.ReadLeft(&a.Host)
	a.forgetDeletion()
	return err
}

// forgetDeletion removes the mark in a start without such a variable. Where that fails the
// next start does it.
func (a *Agent) forgetDeletion() {
	if !a.Left.Marked || a.facts.Planted != "" {
		return
	}
	err := a.WriteESP(func(dir hw.ESPDir) error {
		return errors.Join(dir.Remove(firstboot.DeletionMark), dir.SyncDir(firstboot.Directory))
	})
	if err != nil {
		a.Log.Say("%s on the ESP was not removed: %v", firstboot.DeletionMark, err)
	}
}

// remove deletes a variable that outlives a restart, and looks whether it is gone: some
// firmware says yes to everything.
func (a *Agent) remove(v secureboot.Unmeasured) (planted bool, err error) {
	attributes, _, err := a.Variables.Read(v.Name, v.Vendor)
	if errors.Is(err, fs.ErrNotExist) || attributes != 0 && !v.Planted(attributes) {
		return false, nil
	}
	if attributes == 0 { // it cannot be read
		attributes = secureboot.NonVolatile | secureboot.BootServiceAccess | secureboot.RuntimeAccess
	}
	// No data deletes a variable (UEFI 2.10, section 8.2, SetVariable).
	if err := a.Variables.WriteAuthenticated(v.Name, v.Vendor, attributes, nil); err != nil {
		return true, err
	}
	if _, _, err := a.Variables.Read(v.Name, v.Vendor); !errors.Is(err, fs.ErrNotExist) {
		return true, errors.New("it is still there")
	}
	return true, nil
}
