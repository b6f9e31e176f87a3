package agent

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
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upkeep"
)

// restoreList takes the list in a boot that the recovery key has opened. Where it is
// damaged, and the firmware holds this machine's own keys and nothing else that starts
// anything, it is made again: what the firmware holds needs nobody to vouch for it then.
// With keys of others in the firmware that waits for a boot that the TPM opens.
func (a *Agent) restoreList(secret *policy.Secret) {
	if !a.TakeList(secret) || !a.OwnEnforced() {
		return
	}
	if foreign := enroll.Foreign(a.FirmwareKeys, a.List); foreign != "" {
		a.Log.Say("it is made again once the TPM opens the machine by itself, or its owner has given the firmware this machine's own keys again (Setup Mode): %s", foreign)
		return
	}
	a.remakeList(secret, true)
}

// remakeList makes a bare list of what the firmware holds, and of the ESP's files that
// this machine's key has signed. It is one write: cut before it, the next boot does it.
func (a *Agent) remakeList(secret *policy.Secret, damaged bool) {
	if err := a.adoptFirmware(); err != nil {
		a.Log.Say("the list of what the firmware shall hold was not made: %v", err)
		return
	}
	a.allowSigned()
	if err := rootpart.KeepList(a.Store, a.Random, secret, a.List); err != nil {
		a.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
		return
	}
	a.Log.Say("the list of what the firmware shall hold is made from what it holds")
	if damaged {
		a.NoteSelf(journal.Healed, "the list of what the firmware shall hold was damaged, and is made again from what it holds")
	}
}

// allowSigned adds the ESP's files that this machine's key has signed to the list, and
// reports whether there were any new ones.
func (a *Agent) allowSigned() (changed bool) {
	for _, i := range a.SignedImages(a.List) {
		changed = a.List.Allow([32]byte(i.Digest), i.Name) || changed
	}
	return changed
}

// renewList takes the list, and brings it up to date, in a boot whose secret the
// TPM has released: where the firmware enforces Secure Boot and PCR 7 is part of
// what the TPM asks for, what the firmware holds is what it held when the machine
// was accepted.
//
// It makes the list of a machine that an earlier release has installed, or whose list is
// damaged: from the
// firmware, since the file that such a release keeps can be edited by the running
// system; and of the ESP's files that this machine's key has signed. It takes over
// what was added to dbx, and the running UKI where an earlier release has staged
// it. Each is one write of the file (rootpart.KeepList): cut before it, the next
// boot does it again.
func (a *Agent) renewList(secret *policy.Secret, record *policy.Record) {
	damaged := a.TakeList(secret)
	if a.List == nil || !a.OwnEnforced() || !a.bindsSecureBoot(record) {
		return
	}
	if rootpart.KeysUnfinished(a.Store, a.Lock) {
		return // it is of two sets of keys, and is not what is stored
	}
	if a.List.Bare {
		a.remakeList(secret, damaged)
		return
	}
	changed := a.List.AdoptRevocations(a.FirmwareKeys.DBX.Content)
	running := host.UKIImage(bls.Name{ImageID: a.Contract.ImageID, Version: a.Contract.Version})
	if changed || !a.List.Names(running) {
		changed = a.allowSigned() || changed
	}
	if !changed {
		return
	}
	if err := rootpart.KeepList(a.Store, a.Random, secret, a.List); err != nil {
		a.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
	}
}

// bindsSecureBoot reports whether the TPM released the secret only because PCR 7
// has its value.
func (a *Agent) bindsSecureBoot(record *policy.Record) bool {
	if record != nil {
		return !record.Provisional() && slices.Contains(record.PCRs(), pcr.SecureBoot)
	}
	return slices.Contains(a.Lock.Sealed.PCRs, pcr.SecureBoot)
}

// adoptFirmware makes the list of what the firmware holds. This machine's own keys
// must be among it, kept as keys must be.
func (a *Agent) adoptFirmware() error {
	live := a.FirmwareKeys.Live()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		if missing := a.List.Wanted.Of(v).Without(live.Of(v)); len(missing) > 0 {
			return fmt.Errorf("%s lacks %s", v, missing)
		}
	}
	a.List.Adopt(live)
	if foreign := enroll.Foreign(a.FirmwareKeys, a.List); foreign != "" {
		return errors.New(foreign)
	}
	return nil
}

// listToEnroll is the list by which the firmware gets its keys, with what may be
// signed before. stored is nil at a machine's first boot.
//
// The running UKI is always among it: it is what has measured itself, and to which
// the recovery key was typed where there is one. The boot manager is when the list
// has it, or the verified system image; at a first boot, also when both its names
// have the same, since the image's may be another one than the builder has taken.
func (a *Agent) listToEnroll(keys *secureboot.KeySet, stored *secureboot.List) (*secureboot.List, error) {
	list, reason, err := rootpart.Enrollable(stored, keys, a.Contract.VendorKeys, a.Drivers(), a.FirmwareKeys)
	if err != nil {
		return nil, err
	}
	a.Log.Say("vendor keys: %s", reason)
	if stored != nil && stored.Bare {
		for _, i := range a.SignedImages(list) {
			list.Allow([32]byte(i.Digest), i.Name)
		}
	}
	running := bls.Name{ImageID: a.Contract.ImageID, Version: a.Contract.Version}
	digest, err := a.runningDigest()
	if err != nil {
		return nil, err
	}
	list.Allow(digest, host.UKIImage(running))
	if digest, ok := a.systemManager(); ok {
		list.Allow(digest, host.ManagerImage(running))
	}
	if stored != nil {
		return list, nil
	}
	if digest, ok := a.twinManagers(); ok {
		list.Allow(digest, host.ManagerImage(running))
	}
	return list, nil
}

// runningDigest is the hash of the file that this boot was started from. Others of its
// version, and with its contract, can lie beside it: anybody writes to the ESP. So it is
// the one that the boot manager or the stub names, and has what was measured. What they
// name is not believed alone: root of the running system can write their variables before
// they do.
func (a *Agent) runningDigest() (digest [32]byte, err error) {
	booted, known := a.BootedName()
	if !known {
		return digest, fmt.Errorf("which of the ESP's UKIs of %s %s was started is not known", a.Contract.ImageID, a.Contract.Version)
	}
	err = a.ReadESP(func(files fs.FS) error {
		name := path.Join(bls.Directory, booted.String())
		image, err := a.original(files, name)
		if err != nil {
			return err
		}
		if err := a.wasStarted(files, name, image); err != nil {
			return fmt.Errorf("%s: %w", booted, err)
		}
		im, err := rootpart.ReadImage(image)
		if err != nil {
			return err
		}
		if c := im.Contract; c.ImageID != a.Contract.ImageID || c.Version != a.Contract.Version || !slices.Equal(c.RootHash, a.Contract.RootHash) {
			return fmt.Errorf("%s is %s %s inside, and not the running system", booted, c.ImageID, c.Version)
		}
		if err := a.wasMeasured(im); err != nil {
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
func (a *Agent) wasStarted(files fs.FS, name string, original []byte) error {
	log, _, err := a.ReadLog()
	if err != nil {
		others := slices.ContainsFunc(a.Names, func(n bls.Name) bool { return a.IsOurs(n) && path.Join(bls.Directory, n.String()) != name })
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

func (a *Agent) wasMeasured(im *rootpart.Image) error {
	if a.Chip.Err != nil {
		return nil
	}
	now, err := a.Chip.TPM.Now()
	if err == nil && now.PCR11 != im.PCR11 {
		err = errors.New(host.Meaning(pcr.KernelImage))
	}
	return err
}

// original reads an image as it was before an interrupted signing.
func (a *Agent) original(files fs.FS, name string) ([]byte, error) {
	read := func(name string) ([]byte, error) { return bounded.File(files, name, enroll.MaxEFIFile) }
	image, err := read(name)
	if err != nil {
		return nil, err
	}
	return enroll.Original(read, name, image), nil
}

// systemManager is the hash of the boot manager that the verified system image
// holds, where systemd installs it and the builder takes it from.
func (a *Agent) systemManager() ([32]byte, bool) {
	image, err := a.readSystemManager()
	if err != nil {
		return [32]byte{}, false
	}
	digest, err := authenticode.Digest(image)
	return digest, err == nil
}

func (a *Agent) readSystemManager() ([]byte, error) {
	return bounded.File(os.DirFS(a.Path(host.SystemDirectory)), layout.SystemManager, enroll.MaxEFIFile)
}

// replaceRefused puts a good boot manager in the place of one that the firmware would not
// start once it enforces this machine's keys, since dbx has it: from a backup of the ESP,
// or an older release. Nothing is enforced yet, so that cut anywhere it starts either, and
// this is done again. Where there is none at hand, or it has no room, the check before PK
// says so.
func (a *Agent) replaceRefused(list *secureboot.List) {
	for _, name := range layout.Managers() {
		_, have, _, err := a.FindManager(name)
		if err != nil || have == nil || !a.RefusedImage(list, have) {
			continue
		}
		good := a.goodManager(list)
		if good == nil {
			a.Log.Say("%s is in dbx, and there is no newer boot manager at hand", name)
			continue
		}
		if err := a.ReplaceManager(name, good); err != nil {
			a.Log.Say("%s is in dbx, and was not replaced: %v", name, err)
		}
	}
}

// goodManager is a boot manager of this machine's own that its firmware will start, and
// that no other has replaced: the copy on the root partition, or the verified system
// image's; nil where there is none.
func (a *Agent) goodManager(list *secureboot.List) []byte {
	images, err := upkeep.Keeper(&a.Host).Managers()
	if err != nil {
		a.Log.Say("the copies of the boot manager cannot be read: %v", err)
	}
	if image, err := a.readSystemManager(); err == nil {
		images = append(images, image)
	}
	for _, image := range images {
		digest, err := authenticode.Digest(image)
		if err == nil && list.Allows(digest) && !list.Replaced(digest) && !a.Refused(list, digest) {
			return image
		}
	}
	return nil
}

// twinManagers is the hash of the boot manager where each of its names has the
// same one.
func (a *Agent) twinManagers() (digest [32]byte, same bool) {
	err := a.ReadESP(func(files fs.FS) error {
		for i, name := range a.ManagerPaths() {
			image, err := a.original(files, name)
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
		a.Log.Say("the boot manager is not known: %v", err)
	}
	return digest, same && err == nil
}
