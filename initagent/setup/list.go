package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upkeep"
)

// ListToEnroll is the list by which the firmware gets its keys, with what may be
// signed before. stored is nil at a machine's first boot.
//
// The running UKI is always among it: it is what has measured itself, and to which
// the recovery key was typed where there is one. The boot manager is when the list
// has it, or the verified system image; at a first boot, also when both its names
// have the same, since the image's may be another one than the builder has taken.
func ListToEnroll(h *host.Host, keys *secureboot.KeySet, stored *secureboot.List) (*secureboot.List, error) {
	list, reason, err := rootpart.Enrollable(stored, keys, h.Contract.VendorKeys, h.Drivers(), h.FirmwareKeys)
	if err != nil {
		return nil, err
	}
	h.Log.Say("vendor keys: %s", reason)
	if list.LetStart(h.Left.LetStart) {
		h.Log.Say("other systems go on starting, by a word of the owner's: db also gets %s", h.Left.LetStart.DB)
	}
	if h.Left.Modules != secureboot.Unasked {
		tellModules(h, list, h.Left.Modules == secureboot.Trusted)
	}
	if stored != nil && stored.Bare {
		for _, i := range h.SignedImages(list) {
			list.Allow([32]byte(i.Digest), i.Name)
		}
	}
	running := bls.Name{ImageID: h.Contract.ImageID, Version: h.Contract.Version}
	digest, err := runningDigest(h)
	if err != nil {
		return nil, err
	}
	list.Allow(digest, host.UKIImage(running))
	if digest, ok := systemManager(h); ok {
		list.Allow(digest, host.ManagerImage(running))
	}
	if stored != nil {
		return list, nil
	}
	if digest, ok := twinManagers(h); ok {
		list.Allow(digest, host.ManagerImage(running))
	}
	return list, nil
}

// runningDigest is the hash of the file that this boot was started from. Others of its
// version, and with its contract, can lie beside it: anybody writes to the ESP. So it is
// the one that the boot manager or the stub names, and has what was measured. What they
// name is not believed alone: root of the running system can write their variables before
// they do.
func runningDigest(h *host.Host) (digest [32]byte, err error) {
	booted, known := h.BootedName()
	if !known {
		return digest, fmt.Errorf("which of the ESP's UKIs of %s %s was started is not known", h.Contract.ImageID, h.Contract.Version)
	}
	err = h.ReadESP(func(files fs.FS) error {
		name := path.Join(bls.Directory, booted.String())
		image, err := original(h, files, name)
		if err != nil {
			return err
		}
		if err := wasStarted(h, files, name, image); err != nil {
			return fmt.Errorf("%s: %w", booted, err)
		}
		im, err := rootpart.ReadImage(image)
		if err != nil {
			return err
		}
		if c := im.Contract; c.ImageID != h.Contract.ImageID || c.Version != h.Contract.Version || !slices.Equal(c.RootHash, h.Contract.RootHash) {
			return fmt.Errorf("%s is %s %s inside, and not the running system", booted, c.ImageID, c.Version)
		}
		if err := wasMeasured(h, im); err != nil {
			return fmt.Errorf("%s: %w", booted, err)
		}
		digest, err = authenticode.Digest(image)
		return err
	})
	return digest, err
}

// wasStarted reports that the firmware has not started a file. PCR 11 does not tell: it has
// the sections, and another stub with the same ones can measure them, too, and then do as
// it likes. The firmware's log has the whole file's hash. Without a log, as without a TPM,
// the file must be the only one of its version.
func wasStarted(h *host.Host, files fs.FS, name string, original []byte) error {
	log, _, err := h.ReadLog()
	if err != nil {
		others := slices.ContainsFunc(h.Names, func(n bls.Name) bool { return h.IsOurs(n) && path.Join(bls.Directory, n.String()) != name })
		if others {
			return errors.New("the ESP has several UKIs of this version, and nothing says which one was started: remove the others")
		}
		return nil
	}
	lies, err := bounded.File(files, name, enroll.MaxEFIFile)
	if err != nil {
		return err
	}
	for _, image := range [][]byte{lies, original} {
		if digest, err := authenticode.Measured(image); err == nil && slices.Contains(log.Started(), digest) {
			return nil
		}
	}
	return errors.New("it is not what the firmware has started, by its event log: another file lies in its place, or the variables that name it are forged")
}

func wasMeasured(h *host.Host, im *rootpart.Image) error {
	if h.Chip.Err != nil {
		return nil
	}
	now, err := h.Chip.TPM.Now()
	if err == nil && now.PCR11 != im.PCR11 {
		err = errors.New(host.Meaning(pcr.KernelImage))
	}
	return err
}

// original reads an image as it was before an interrupted signing.
func original(h *host.Host, files fs.FS, name string) ([]byte, error) {
	read := func(name string) ([]byte, error) { return bounded.File(files, name, enroll.MaxEFIFile) }
	image, err := read(name)
	if err != nil {
		return nil, err
	}
	return enroll.Original(read, name, image), nil
}

// systemManager is the hash of the boot manager that the verified system image
// holds, where systemd installs it and the builder takes it from.
func systemManager(h *host.Host) ([32]byte, bool) {
	image, err := readSystemManager(h)
	if err != nil {
		return [32]byte{}, false
	}
	digest, err := authenticode.Digest(image)
	return digest, err == nil
}

func readSystemManager(h *host.Host) ([]byte, error) {
	return bounded.File(os.DirFS(h.Path(host.SystemDirectory)), layout.SystemManager, enroll.MaxEFIFile)
}

// replaceRefused puts a good boot manager in the place of one that the firmware would not
// start once it enforces this machine's keys, since dbx has it: from a backup of the ESP,
// or an older release. Nothing is enforced yet, so that cut anywhere it starts either, and
// this is done again. Where there is none at hand, or it has no room, the check before PK
// says so.
func replaceRefused(h *host.Host, list *secureboot.List) {
	for _, name := range layout.Managers() {
		_, have, _, err := h.FindManager(name)
		if err != nil || have == nil || !h.RefusedImage(list, have) {
			continue
		}
		good := goodManager(h, list)
		if good == nil {
			h.Log.Say("%s is in dbx, and there is no newer boot manager at hand", name)
			continue
		}
		if err := h.ReplaceManager(name, good); err != nil {
			h.Log.Say("%s is in dbx, and was not replaced: %v", name, err)
		}
	}
}

// goodManager is a boot manager of this machine's own that its firmware will start, and
// that no other has replaced: the copy on the root partition, or the verified system
// image's; nil where there is none.
func goodManager(h *host.Host, list *secureboot.List) []byte {
	images, err := upkeep.Keeper(h).Managers()
	if err != nil {
		h.Log.Say("the copies of the boot manager cannot be read: %v", err)
	}
	if image, err := readSystemManager(h); err == nil {
		images = append(images, image)
	}
	for _, image := range images {
		digest, err := authenticode.Digest(image)
		if err == nil && list.Allows(digest) && !list.Replaced(digest) && !h.Refused(list, digest) {
			return image
		}
	}
	return nil
}

// twinManagers is the hash of the boot manager where each of its names has the
// same one.
func twinManagers(h *host.Host) (digest [32]byte, same bool) {
	err := h.ReadESP(func(files fs.FS) error {
		for i, name := range h.ManagerPaths() {
			image, err := original(h, files, name)
			if err != nil {
				return err
			}
			one, err := authenticode.Digest(image)
			if err != nil {
				return err
			}
			if i > 0 && one != digest {
				return errors.New("the boot manager's two names have different ones")
			}
			digest, same = one, true
		}
		return nil
	})
	if err != nil {
		h.Log.Say("the boot manager is not known: %v", err)
	}
	return digest, same && err == nil
}
