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
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
)

// takeList reads the list of what this machine wants its firmware to hold and of
// what counts as its own, once the root partition is open, and reports whether it is
// damaged. A damaged one is bare until it is made again.
func (a *Agent) takeList(secret *policy.Secret) (damaged bool) {
	list, why, err := rootpart.OwnList(a.Store, secret, a.lock, &a.firmware)
	if err != nil {
		a.Log.Say("what the firmware shall hold is not known: %v", err)
		return false
	}
	a.list = list
	if why != nil {
		a.Log.Say("the list of what the firmware shall hold is damaged: %v", why)
	}
	return why != nil
}

// restoreList takes the list in a boot that the recovery key has opened. Where it is
// damaged, and the firmware holds this machine's own keys and nothing else that starts
// anything, it is made again: what the firmware holds needs nobody to vouch for it then.
// With keys of others in the firmware that waits for a boot that the TPM opens.
func (a *Agent) restoreList(secret *policy.Secret) {
	if !a.takeList(secret) || !a.ownEnforced() {
		return
	}
	if foreign := enroll.Foreign(a.firmware, a.list); foreign != "" {
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
	if err := rootpart.KeepList(a.Store, a.Random, secret, a.list); err != nil {
		a.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
		return
	}
	a.Log.Say("the list of what the firmware shall hold is made from what it holds")
	if damaged {
		a.noteSelf(journal.Healed, "the list of what the firmware shall hold was damaged, and is made again from what it holds")
	}
}

// allowSigned adds the ESP's files that this machine's key has signed to the list, and
// reports whether there were any new ones.
func (a *Agent) allowSigned() (changed bool) {
	for _, i := range a.signedImages(a.list) {
		changed = a.list.Allow([32]byte(i.Digest), i.Name) || changed
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
	damaged := a.takeList(secret)
	if a.list == nil || !a.ownEnforced() || !a.bindsSecureBoot(record) {
		return
	}
	if rootpart.KeysUnfinished(a.Store, a.lock) {
		return // it is of two sets of keys, and is not what is stored
	}
	if a.list.Bare {
		a.remakeList(secret, damaged)
		return
	}
	changed := a.list.AdoptRevocations(a.firmware.DBX.Content)
	running := ukiImage(bls.Name{ImageID: a.contract.ImageID, Version: a.contract.Version})
	if changed || !a.list.Names(running) {
		changed = a.allowSigned() || changed
	}
	if !changed {
		return
	}
	if err := rootpart.KeepList(a.Store, a.Random, secret, a.list); err != nil {
		a.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
	}
}

// bindsSecureBoot reports whether the TPM released the secret only because PCR 7
// has its value.
func (a *Agent) bindsSecureBoot(record *policy.Record) bool {
	if record != nil {
		return !record.Provisional() && slices.Contains(record.PCRs(), pcr.SecureBoot)
	}
	return slices.Contains(a.lock.Sealed.PCRs, pcr.SecureBoot)
}

// adoptFirmware makes the list of what the firmware holds. This machine's own keys
// must be among it, kept as keys must be.
func (a *Agent) adoptFirmware() error {
	live := a.firmware.Live()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		if missing := a.list.Wanted.Of(v).Without(live.Of(v)); len(missing) > 0 {
			return fmt.Errorf("%s lacks %s", v, missing)
		}
	}
	a.list.Adopt(live)
	if foreign := enroll.Foreign(a.firmware, a.list); foreign != "" {
		return errors.New(foreign)
	}
	return nil
}

// ukiImage and managerImage are what the list calls a system's files.
func ukiImage(n bls.Name) string { return n.Blessed().String() }

const managerPrefix = "the boot manager that came with "

func managerImage(n bls.Name) string { return managerPrefix + ukiImage(n) }

// signedImages are the boot managers and the UKIs of this image on the ESP that
// this machine's key has signed.
func (a *Agent) signedImages(list *secureboot.List) (out []secureboot.Image) {
	own, err := list.DBCertificate()
	if err != nil {
		return nil
	}
	running := bls.Name{ImageID: a.contract.ImageID, Version: a.contract.Version}
	names := map[string]string{} // of the images, by path
	for _, m := range a.managerPaths() {
		names[m] = managerImage(running)
	}
	for _, n := range a.names {
		if n.ImageID == a.contract.ImageID {
			names[path.Join(bls.Directory, n.String())] = ukiImage(n)
		}
	}
	err = a.readESP(func(files fs.FS) error {
		for file, name := range names {
			image, err := readFile(files, file, enroll.MaxEFIFile)
			if err != nil || authenticode.VerifyOwn(image, own) != nil {
				continue
			}
			if digest, err := authenticode.Digest(image); err == nil {
				out = append(out, secureboot.Image{Digest: digest[:], Name: name})
			}
		}
		return nil
	})
	if err != nil {
		a.Log.Say("what this machine's key has signed is not known: %v", err)
	}
	slices.SortFunc(out, func(x, y secureboot.Image) int { return slices.Compare(x.Digest, y.Digest) })
	return out
}

// starts says why an image is not this machine's own, or would not start.
func (a *Agent) starts(image []byte) error {
	if a.list != nil {
		return rootpart.CheckOwn(image, a.firmware, a.list)
	}
	return rootpart.CheckStarts(image, a.firmware, rootpart.Certificates(a.firmware))
}

// listRelease has the list allow the EFI files that the signed description of a
// release names. It is stored before any of them is signed. Cut after it, the list
// allows what the distributor has signed, and is not there yet.
func (a *Agent) listRelease(r *release.Release) error {
	if a.list == nil || a.list.Bare {
		return nil // all that the key has signed counts
	}
	n := bls.Name{ImageID: r.ImageID, Version: r.Version}
	changed := false
	for _, i := range []struct{ file, name string }{{release.UKIFile, ukiImage(n)}, {release.BootManagerFile, managerImage(n)}} {
		if f, ok := r.File(i.file); ok && len(f.Authenticode) == 32 && !a.list.Allows([32]byte(f.Authenticode)) {
			changed = a.list.Allow([32]byte(f.Authenticode), i.name) || changed
		}
	}
	if !changed {
		return nil
	}
	return rootpart.KeepList(a.Store, a.Random, a.secret, a.list)
}

// listToEnroll is the list by which the firmware gets its keys, with what may be
// signed before. stored is nil at a machine's first boot.
//
// The running UKI is always among it: it is what has measured itself, and to which
// the recovery key was typed where there is one. The boot manager is when the list
// has it, or the verified system image; at a first boot, also when both its names
// have the same, since the image's may be another one than the builder has taken.
func (a *Agent) listToEnroll(keys *secureboot.KeySet, stored *secureboot.List) (*secureboot.List, error) {
	list, reason, err := rootpart.Enrollable(stored, keys, a.contract.VendorKeys, a.drivers(), a.firmware)
	if err != nil {
		return nil, err
	}
	a.Log.Say("vendor keys: %s", reason)
	if stored != nil && stored.Bare {
		for _, i := range a.signedImages(list) {
			list.Allow([32]byte(i.Digest), i.Name)
		}
	}
	running := bls.Name{ImageID: a.contract.ImageID, Version: a.contract.Version}
	digest, err := a.runningDigest()
	if err != nil {
		return nil, err
	}
	list.Allow(digest, ukiImage(running))
	if digest, ok := a.systemManager(); ok {
		list.Allow(digest, managerImage(running))
	}
	if stored != nil {
		return list, nil
	}
	if digest, ok := a.twinManagers(); ok {
		list.Allow(digest, managerImage(running))
	}
	return list, nil
}

// drivers are the option ROMs by the event log.
func (a *Agent) drivers() secureboot.Drivers {
	log, _, err := a.readLog()
	if err != nil {
		a.Log.Say("option ROMs are not known: %v", err)
		return secureboot.Drivers{}
	}
	return log.Drivers()
}

// runningDigest is the hash of the file that this boot was started from. Others of its
// version, and with its contract, can lie beside it: anybody writes to the ESP. So it is
// the one that the boot manager or the stub names, and has what was measured. What they
// name is not believed alone: root of the running system can write their variables before
// they do.
func (a *Agent) runningDigest() (digest [32]byte, err error) {
	booted, known := a.bootedName()
	if !known {
		return digest, fmt.Errorf("which of the ESP's UKIs of %s %s was started is not known", a.contract.ImageID, a.contract.Version)
	}
	err = a.readESP(func(files fs.FS) error {
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
		if c := im.Contract; c.ImageID != a.contract.ImageID || c.Version != a.contract.Version || !slices.Equal(c.RootHash, a.contract.RootHash) {
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
	log, _, err := a.readLog()
	if err != nil {
		others := slices.ContainsFunc(a.names, func(n bls.Name) bool { return a.isOurs(n) && path.Join(bls.Directory, n.String()) != name })
		if others {
			return errors.New("the ESP has several UKIs of this version, and nothing says which one was started: remove the others")
		}
		return nil
	}
	lies, err := readFile(files, name, enroll.MaxEFIFile)
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
	if a.chip.err != nil {
		return nil
	}
	now, err := a.chip.tpm.Now()
	if err == nil && now.PCR11 != im.PCR11 {
		err = errors.New(meaning(pcr.KernelImage))
	}
	return err
}

// original reads an image as it was before an interrupted signing.
func (a *Agent) original(files fs.FS, name string) ([]byte, error) {
	read := func(name string) ([]byte, error) { return readFile(files, name, enroll.MaxEFIFile) }
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
	return readFile(os.DirFS(a.path(systemDirectory)), layout.SystemManager, enroll.MaxEFIFile)
}

// replaceRefused puts a good boot manager in the place of one that the firmware would not
// start once it enforces this machine's keys, since dbx has it: from a backup of the ESP,
// or an older release. Nothing is enforced yet, so that cut anywhere it starts either, and
// this is done again. Where there is none at hand, or it has no room, the check before PK
// says so.
func (a *Agent) replaceRefused(list *secureboot.List) {
	for _, name := range managers() {
		_, have, _, err := a.findManager(name)
		if err != nil || have == nil || !a.refusedImage(list, have) {
			continue
		}
		good := a.goodManager(list)
		if good == nil {
			a.Log.Say("%s is in dbx, and there is no newer boot manager at hand", name)
			continue
		}
		if err := a.replaceManager(name, good); err != nil {
			a.Log.Say("%s is in dbx, and was not replaced: %v", name, err)
		}
	}
}

func (a *Agent) refusedImage(list *secureboot.List, image []byte) bool {
	digest, err := authenticode.Digest(image)
	return err == nil && a.refused(list, digest)
}

// goodManager is a boot manager of this machine's own that its firmware will start, and
// that no other has replaced: the copy on the root partition, or the verified system
// image's; nil where there is none.
func (a *Agent) goodManager(list *secureboot.List) []byte {
	images, err := a.keeper().Managers()
	if err != nil {
		a.Log.Say("the copies of the boot manager cannot be read: %v", err)
	}
	if image, err := a.readSystemManager(); err == nil {
		images = append(images, image)
	}
	for _, image := range images {
		digest, err := authenticode.Digest(image)
		if err == nil && list.Allows(digest) && !list.Replaced(digest) && !a.refused(list, digest) {
			return image
		}
	}
	return nil
}

// managerPaths are the boot manager's names that the ESP has, as it spells them.
func (a *Agent) managerPaths() (out []string) {
	for _, name := range managers() {
		if actual, have, _, err := a.findManager(name); err == nil && have != nil {
			out = append(out, actual)
		}
	}
	return out
}

// twinManagers is the hash of the boot manager where each of its names has the
// same one.
func (a *Agent) twinManagers() (digest [32]byte, same bool) {
	err := a.readESP(func(files fs.FS) error {
		for i, name := range a.managerPaths() {
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

// ownEnforced reports whether the firmware starts what this machine's own keys
// have signed, so that its db can vouch for a deed.
func (a *Agent) ownEnforced() bool {
	if a.list == nil {
		return rootpart.OwnEnforced(a.firmware, a.contract.SecureBoot)
	}
	return rootpart.ListEnforced(a.firmware, a.list)
}
