package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
)

// CountVariable is where the boot manager says that it has counted a start of a trial.
const CountVariable = "LoaderBootCountPath"

// ReadESP is hw.ESP.Read of this machine's ESP.
func (h *Host) ReadESP(read func(files fs.FS) error) error { return h.ESP.Read(h.Disk, read) }

// WriteESP is hw.ESP.Write of this machine's ESP.
func (h *Host) WriteESP(write func(dir hw.ESPDir) error) error { return h.ESP.Write(h.Disk, write) }

// IsOurs reports whether a UKI is the running one.
func (h *Host) IsOurs(n bls.Name) bool {
	return n.ImageID == h.Contract.ImageID && n.Version == h.Contract.Version
}

// UKINames are the names of the UKIs on the ESP that follow our rules.
func (h *Host) UKINames() (names []bls.Name, err error) {
	err = h.ReadESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Directory)
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil {
				names = append(names, n)
			}
		}
		return err
	})
	return names, err
}

// ErrNoUKI is an ESP without the running system's UKI.
var ErrNoUKI = errors.New("the ESP has no UKI")

// runningUKI reads the file that this boot was started from, or, where that is not
// known, one of its version.
func (h *Host) runningUKI() (image []byte, err error) {
	booted, known := h.BootedName()
	err = h.ReadESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Directory)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil && h.IsOurs(n) && (!known || n == booted) {
				image, err = bounded.File(files, path.Join(bls.Directory, e.Name()), enroll.MaxEFIFile)
				return err
			}
		}
		return fmt.Errorf("%w of %s %s", ErrNoUKI, h.Contract.ImageID, h.Contract.Version)
	})
	return image, err
}

// BootedName is the name of the UKI that this boot was started from, as it is
// now: the boot manager says what it renamed, and the stub where it lay.
func (h *Host) BootedName() (bls.Name, bool) {
	for _, variable := range []string{CountVariable, "StubImageIdentifier"} {
		value, err := h.Firmware.LoaderString(variable)
		if err != nil || value == "" {
			continue
		}
		file := path.Base(strings.ReplaceAll(value, `\`, "/"))
		for _, n := range h.Names {
			if strings.EqualFold(n.String(), file) && h.IsOurs(n) {
				return n, true
			}
		}
	}
	// Where neither says, the only file of this version is the one.
	var ours []bls.Name
	for _, n := range h.Names {
		if h.IsOurs(n) {
			ours = append(ours, n)
		}
	}
	if len(ours) == 1 {
		return ours[0], true
	}
	return bls.Name{}, false
}

// RunsBlessed reports whether the running system has proven itself: only such a
// one may give others up. The boot manager says what it counted, and the name
// says what was never blessed.
func (h *Host) RunsBlessed() bool {
	booted, known := h.BootedName()
	return !h.State.Trial && known && !booted.Counted
}

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
	err = h.WriteESP(func(dir hw.ESPDir) error { return dir.Rename(esp.Path(booted), esp.Path(tried)) })
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
			err := esp.Condemn(dir, n)
			if err == nil {
				h.Log.Say("%s has no tries left", n.Condemned())
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
