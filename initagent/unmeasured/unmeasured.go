// Package unmeasured removes what somebody has stored in the firmware for the kernel,
// systemd or this program to obey, and nothing measures.
//
// It refuses to delete a variable that does not outlive a restart: the boot manager or the
// stub has written that.
package unmeasured

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
)

// Removed is what was found.
type Removed struct {
	// Planted says what the kernel of this boot has obeyed, or may obey, for a person.
	Planted string
	Again   bool // it is deleted, for the first time, and the next start is without it
	// CountVariable: host.CountVariable was somebody's, and is deleted.
	CountVariable bool
}

// Remove takes away what somebody has stored in the firmware for the kernel,
// systemd or this program to obey, and nothing measures. What the kernel has obeyed already is a reason
// to start again, before a secret is released or a console opens.
//
// Each deletion stands for itself: cut between two, the next start finds the rest.
func Remove(h *host.Host) (r Removed) {
	var gone, stay []string
	for _, v := range secureboot.UnmeasuredVariables {
		planted, err := remove(h, v)
		switch {
		case !planted:
			continue
		case err != nil && v.Ignored:
			h.Log.Say("WARNING: the firmware's variable %s, which %s, is not part of this system and is ignored. It cannot be deleted: %v", v.Name, v.Does, err)
			continue
		case err != nil:
			stay = append(stay, v.Name)
			h.Log.Say("WARNING: the firmware's variable %s, which %s, cannot be deleted: %v", v.Name, v.Does, err)
			continue
		}
		h.Log.Say("WARNING: the firmware had a variable %s, which %s. It is not part of this system, and was deleted: somebody was root on this machine, or at its console", v.Name, v.Does)
		r.CountVariable = r.CountVariable || v.Name == host.CountVariable
		if v.Early {
			gone = append(gone, v.Name)
		}
	}
	if len(stay) > 0 {
		r.Planted = fmt.Sprintf("the firmware's variable %s is not part of this system, and cannot be deleted: reset the firmware to its factory settings, its Secure Boot keys too, and have the recovery key at hand for the next start",
			strings.Join(stay, ", "))
	} else if len(gone) > 0 {
		r.Planted, r.Again = afterDeletion(h, strings.Join(gone, ", "))
	}
	return r
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
// its name counts. It goes in the first start without the variable (ForgetMark).
func afterDeletion(h *host.Host, names string) (planted string, again bool) {
	planted = fmt.Sprintf("the kernel has obeyed %s, which was no part of this system and is deleted", names)
	marked, err := markDeletion(h)
	switch {
	case err != nil:
		return fmt.Sprintf("%s. That cannot be noted on the ESP (%v), so the machine does not start again by itself: `exit` restarts it", planted, err), false
	case marked:
		return fmt.Sprintf("%s, which is not part of this system, is there again after an earlier start has deleted it. It is deleted now, too, and `exit` restarts without it. If it comes back, the firmware restores it: "+
			"update the firmware, or reset it to its factory settings, its Secure Boot keys too, and have the recovery key at hand for the next start; "+
			"a virtual machine whose variables are restored needs a copy of them without it", names), false
	}
	return planted, true
}

// markDeletion puts the mark on the ESP, and reports whether it was there.
func markDeletion(h *host.Host) (there bool, err error) {
	if err := errors.Join(h.LoadDrivers(), h.FindDisk()); err != nil {
		return false, err
	}
	err = h.ReadESP(func(files fs.FS) error {
		_, err := fs.Stat(files, firstboot.DeletionMark)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return false, h.WriteESP(func(dir hw.ESPDir) error {
		if err := dir.MakeDirectory(firstboot.Directory); err != nil {
			return err
		}
		if err := dir.SyncDir(path.Dir(firstboot.Directory)); err != nil {
			return err
		}
		return enroll.Replace(dir, firstboot.DeletionMark, []byte("a variable of the firmware was deleted\n"))
	})
}

// ForgetMark removes the mark in a start without such a variable. Where that fails the
// next start does it.
func ForgetMark(h *host.Host, planted string) {
	if !h.Left.Marked || planted != "" {
		return
	}
	err := h.WriteESP(func(dir hw.ESPDir) error {
		return errors.Join(dir.Remove(firstboot.DeletionMark), dir.SyncDir(firstboot.Directory))
	})
	if err != nil {
		h.Log.Say("%s on the ESP was not removed: %v", firstboot.DeletionMark, err)
	}
}

// remove deletes a variable that outlives a restart, and looks whether it is gone: some
// firmware says yes to everything.
func remove(h *host.Host, v secureboot.Unmeasured) (planted bool, err error) {
	attributes, _, err := h.Variables.Read(v.Name, v.Vendor)
	if errors.Is(err, fs.ErrNotExist) || attributes != 0 && !v.Planted(attributes) {
		return false, nil
	}
	if attributes == 0 { // it cannot be read
		attributes = secureboot.NonVolatile | secureboot.BootServiceAccess | secureboot.RuntimeAccess
	}
	// No data deletes a variable (UEFI 2.10, section 8.2, SetVariable).
	if err := h.Variables.WriteAuthenticated(v.Name, v.Vendor, attributes, nil); err != nil {
		return true, err
	}
	if _, _, err := h.Variables.Read(v.Name, v.Vendor); !errors.Is(err, fs.ErrNotExist) {
		return true, errors.New("it is still there")
	}
	return true, nil
}
