package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"halogenos.internal/boot/secureboot"
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
		if v.Early {
			gone = append(gone, v.Name)
		}
	}
	if len(stay) > 0 {
		a.facts.Planted = fmt.Sprintf("the firmware's variable %s is no part of this system, and cannot be deleted: reset the firmware to its factory settings, its Secure Boot keys too, and have the recovery key at hand for the next start",
			strings.Join(stay, ", "))
	} else if len(gone) > 0 {
		a.facts.Planted = fmt.Sprintf("the kernel has obeyed %s, which was no part of this system and is deleted", strings.Join(gone, ", "))
		a.facts.PlantedGone = true
	}
	return nil
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
