package host

import (
	"errors"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/systems"
)

// CountTry counts a start of a trial that nobody has counted: the boot manager cannot
// rename the file, or the firmware started it without one. Such a trial would never be
// over. It is the rename that the boot manager makes, by another driver; cut before it,
// the start is not counted, and cut in it, hw.ESPDir says what is left. Where it fails the
// system starts all the same, and what that means is said.
//
// Where somebody had stored something under the variable's name, the boot manager could
// not say whether it has counted. The variable is deleted now and the next start is an
// ordinary one, so this one (deleted) is not counted: a trial would lose two tries at once. Where it
// cannot be deleted, a trial that loses two is better than one that never ends.
func (h *Host) CountTry(deleted bool) error {
	counted, err := h.Firmware.LoaderString(CountVariable)
	if err != nil || counted != "" || deleted {
		return nil
	}
	if h.Names, err = h.UKINames(); err != nil {
		return nil // which is said where it matters
	}
	booted, known := h.BootedName()
	if !known || !booted.Trial() {
		return nil
	}
	tried := booted.Tried()
	err = h.WriteESP(func(dir hw.ESPDir) error { return dir.Rename(systems.Path(booted), systems.Path(tried)) })
	if err != nil {
		h.Log.Say("WARNING: this start of %s was not counted, so that the trial does not end by itself (%v): `esp-rebuild` at the recovery console makes the ESP again", booted, err)
		return nil
	}
	h.Log.Say("the boot manager has not counted this start of a trial: it is %s now", tried)
	return nil
}

// Condemn takes the tries away of the file that this boot was started from, so
// that the boot manager prefers another from now on. Where that file is not
// known, every file of this version loses them.
func (h *Host) Condemn() error {
	these := slices.DeleteFunc(slices.Clone(h.Names), func(n bls.Name) bool { return !h.IsOurs(n) })
	if booted, known := h.BootedName(); known {
		these = []bls.Name{booted}
	}
	these = slices.DeleteFunc(these, bls.Name.Bad)
	if len(these) == 0 {
		return nil // its last try was counted when it was started
	}
	return h.WriteESP(func(dir hw.ESPDir) error {
		var errs []error
		for _, n := range these {
			err := systems.Condemn(dir, n)
			if err == nil {
				h.Log.Say("%s has no tries left", n.Condemned())
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
