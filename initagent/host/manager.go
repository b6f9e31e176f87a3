package host

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// SpareManager is what a new boot manager is called until it has its place, in the
// directory of the old one. The name needs one directory entry alone.
const SpareManager = "HALOGEN.NEW"

// FindManager reads a boot manager, whose name may be written in another case, and
// reports whether there is a spare file beside it. One that is not there is nil.
func (h *Host) FindManager(name string) (actual string, have []byte, spare bool, err error) {
	actual = name
	err = h.ReadESP(func(files fs.FS) error {
		directory := path.Dir(name)
		entries, err := fs.ReadDir(files, directory)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			spare = spare || strings.EqualFold(e.Name(), SpareManager)
			if strings.EqualFold(e.Name(), path.Base(name)) {
				actual = path.Join(directory, e.Name())
			}
		}
		if err != nil {
			return err
		}
		have, err = bounded.File(files, actual, enroll.MaxEFIFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return actual, have, spare, err
}

// ManagerPaths are the boot manager's names that the ESP has, as it spells them.
func (h *Host) ManagerPaths() (out []string) {
	for _, name := range layout.Managers() {
		if actual, have, _, err := h.FindManager(name); err == nil && have != nil {
			out = append(out, actual)
		}
	}
	return out
}

// isManager reports whether a file is the boot manager that it should be, and one
// that starts.
func (h *Host) isManager(have, want []byte) bool {
	if rootpart.Enforces(h.FirmwareKeys) && h.Starts(have) != nil {
		return false
	}
	first, err := authenticode.Digest(have)
	if err != nil {
		return false
	}
	second, err := authenticode.Digest(want)
	return err == nil && first == second
}

// exchangeManager exchanges two files, and back again where what is read then is
// not what it should be.
func (h *Host) exchangeManager(name, spare string, signed []byte) error {
	if err := h.ESP.Exchange(h.Disk, name, spare); err != nil {
		return err
	}
	_, now, _, err := h.FindManager(name)
	if err == nil && bytes.Equal(now, signed) {
		return nil
	}
	return errors.Join(errors.New("it reads back otherwise, and was exchanged again"), err, h.ESP.Exchange(h.Disk, name, spare))
}

// ReplaceManager replaces one file by a signed image. The name has one whole boot
// manager or the other at every instant: the new one is written beside it under a
// name that nothing starts, and is known to be on the disk; then the two exchange
// what they have, by a write of one sector; and what is the old one then goes. Cut
// before that write, the spare file is written again; cut after it, the new boot
// manager is in its place, and the spare file is removed the next time.
func (h *Host) ReplaceManager(name string, signed []byte) error {
	name, have, spare, err := h.FindManager(name)
	if err != nil {
		return err
	}
	spareName := path.Join(path.Dir(name), SpareManager)
	var apart error
	if have != nil && !h.isManager(have, signed) {
		err := h.WriteESP(func(dir hw.ESPDir) error {
			if err := esp.CheckRoom(dir, int64(len(signed))); err != nil {
				return err
			}
			return enroll.Replace(dir, spareName, signed)
		})
		if err == nil {
			err = h.exchangeManager(name, spareName, signed)
		}
		if err != nil && !errors.Is(err, fat.ErrApart) {
			return err
		}
		if err == nil {
			h.Log.Say("%s is the one of version %s now", name, h.Contract.Version)
		}
		apart, spare = err, true
	}
	if !spare {
		return apart
	}
	return errors.Join(apart, h.WriteESP(func(dir hw.ESPDir) error {
		return errors.Join(dir.Remove(spareName), dir.SyncDir(path.Dir(spareName)))
	}))
}
