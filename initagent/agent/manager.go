package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/systems"
)

// spareManager is what a new boot manager is called until it has its place, in the
// folder of the old one. The name needs one directory entry alone.
const spareManager = "HALOGEN.NEW"

// managers are where the boot manager lies on the ESP. The one that the machine
// cannot do without comes last.
func managers() []string {
	return []string{"EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"}
}

// managerFile is where the fetcher has put the running release's boot manager.
func (a *Agent) managerFile() string {
	return path.Join(fetchFolder, a.contract.Version.String(), release.BootManagerFile)
}

// managerWaits reports whether the running release has brought a boot manager that
// was not looked at since it has proven itself.
func (a *Agent) managerWaits() bool {
	if a.facts.Managed != slot.NotTried || !a.runsBlessed() {
		return false
	}
	_, err := a.Store.Read(a.managerFile(), 0)
	return errors.Is(err, hw.ErrUnfit) // it is there
}

// updateManager puts the boot manager of the running release in the place of an
// older one. That waits for the bless, since there is only one: until then it must
// be the one that has started the fallback. The running system could have changed
// the file by now, so it counts only with the release's signature.
func (a *Agent) updateManager() error {
	err := a.newManager()
	if _, refused := errors.AsType[refusal](err); err == nil || refused {
		err = errors.Join(err, a.Store.Remove(a.managerFile()))
	}
	return err
}

func (a *Agent) newManager() error {
	r, err := a.readRelease(a.contract.Version)
	if err != nil {
		return err
	}
	if err := r.Matches(a.contract); err != nil {
		return refusal{err}
	}
	file, _ := r.File(release.BootManagerFile)
	image, err := a.checkedFile(r, file)
	if err != nil {
		return err
	}
	if err := a.listRelease(r); err != nil {
		return err
	}
	signed, err := a.signed(image)
	if err != nil {
		return err
	}
	for _, name := range managers() {
		if err := a.replaceManager(name, signed); err != nil {
			return fmt.Errorf("replace %s: %w", name, err)
		}
	}
	return nil
}

// replaceManager replaces one file by a signed image. The name has one whole boot
// manager or the other at every instant: the new one is written beside it under a
// name that nothing starts, and is known to be on the disk; then the two exchange
// what they have, by a write of one sector; and what is the old one then goes. Cut
// before that write, the spare file is written anew; cut after it, the new boot
// manager is in its place, and the spare file is removed the next time.
func (a *Agent) replaceManager(name string, signed []byte) error {
	name, have, spare, err := a.findManager(name)
	if err != nil {
		return err
	}
	spareName := path.Join(path.Dir(name), spareManager)
	if have != nil && !a.isManager(have, signed) {
		err := a.writeESP(func(dir hw.ESPDir) error {
			if err := systems.CheckRoom(dir, int64(len(signed))); err != nil {
				return err
			}
			return enrol.Replace(dir, spareName, signed)
		})
		if err == nil {
			err = a.exchangeManager(name, spareName, signed)
		}
		if err != nil && !errors.Is(err, fat.ErrApart) {
			return err
		}
		if err == nil {
			a.Log.Say("%s is the one of version %s now", name, a.contract.Version)
		} else {
			a.Log.Say("%s stays as it is: %v", name, err)
		}
		spare = true
	}
	if !spare {
		return nil
	}
	return a.writeESP(func(dir hw.ESPDir) error {
		return errors.Join(dir.Remove(spareName), dir.SyncDir(path.Dir(spareName)))
	})
}

// exchangeManager exchanges two files, and back again where what is read then is
// not what it should be.
func (a *Agent) exchangeManager(name, spare string, signed []byte) error {
	if err := a.ESP.Exchange(a.disk, name, spare); err != nil {
		return err
	}
	_, now, _, err := a.findManager(name)
	if err == nil && bytes.Equal(now, signed) {
		return nil
	}
	return errors.Join(errors.New("it reads back otherwise, and was exchanged again"), err, a.ESP.Exchange(a.disk, name, spare))
}

// findManager reads a boot manager, whose name may be written in another case, and
// reports whether there is a spare file beside it. One that is not there is nil.
func (a *Agent) findManager(name string) (actual string, have []byte, spare bool, err error) {
	actual = name
	err = a.readESP(func(files fs.FS) error {
		folder := path.Dir(name)
		entries, err := fs.ReadDir(files, folder)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			spare = spare || strings.EqualFold(e.Name(), spareManager)
			if strings.EqualFold(e.Name(), path.Base(name)) {
				actual = path.Join(folder, e.Name())
			}
		}
		if err != nil {
			return err
		}
		have, err = readFile(files, actual, enrol.MaxEFIFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return actual, have, spare, err
}

// isManager reports whether a file is the boot manager that it should be, and one
// that starts.
func (a *Agent) isManager(have, want []byte) bool {
	if rootpart.Enforces(a.firmware) && a.starts(have) != nil {
		return false
	}
	first, err := authenticode.Digest(have)
	if err != nil {
		return false
	}
	second, err := authenticode.Digest(want)
	return err == nil && first == second
}
