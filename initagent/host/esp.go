package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/initagent/enroll"
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
