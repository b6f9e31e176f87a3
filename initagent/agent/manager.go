package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/systems"
)

// spareManager is what a new boot manager is called until it has its place, in the
// directory of the old one. The name needs one directory entry alone.
const spareManager = "HALOGEN.NEW"

func managers() []string { return layout.Managers() }

// managerFile is where the fetcher has put the running release's boot manager.
func (a *Agent) managerFile() string {
	return path.Join(fetchDirectory, a.contract.Version.String(), release.BootManagerFile)
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
//
// The file stays until the exchange has settled and the old one is in dbx: whoever
// puts the old one back on the ESP meanwhile, which this firmware still starts, finds
// it replaced again at every boot.
func (a *Agent) updateManager() error {
	err := a.newManager()
	if _, refused := errors.AsType[refusal](err); err == nil && !a.exchanging() || refused {
		err = errors.Join(err, a.Store.Remove(a.managerFile()))
	}
	return err
}

// exchanging reports whether the boot manager is being replaced: the old one still
// unlocks, or is still to be revoked.
func (a *Agent) exchanging() bool {
	return a.tellsReplaced() && (a.record.Passing() || len(a.list.ToRevoke()) > 0)
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
	if err := a.newest([32]byte(file.Authenticode)); err != nil {
		return refusal{err}
	}
	if err := a.newerUnlocks(); err != nil {
		if a.inPlace([32]byte(file.Authenticode)) {
			return nil // the newer release has the same one, or none
		}
		return err // it may have its place once the newer release was given up
	}
	old, err := a.listReplaced([32]byte(file.Authenticode))
	if err != nil {
		return err
	}
	if err := a.admitManager(signed); err != nil {
		return fmt.Errorf("let the new boot manager's boots unlock the root partition: %w", err)
	}
	stays := ""
	for _, name := range managers() {
		err := a.replaceManager(name, signed)
		switch {
		case errors.Is(err, fat.ErrApart):
			stays = fmt.Sprintf("%s stays as it is: %v", name, err)
		case err != nil:
			return fmt.Errorf("replace %s: %w", name, err)
		}
	}
	if stays == "" {
		return nil
	}
	return refusal{errors.Join(errors.New(stays), a.listRestored(old))}
}

// newest refuses the boot manager of an older release than the one whose boot manager this
// machine has. The release's description is public, so that anybody who can start a
// fallback could lay it there: the newer one would be replaced, and revoked for good. Root
// can put an older list back, or damage it; the TPM's record is fresh. A list of the time
// before that was noted knows which ones were replaced.
func (a *Agent) newest(fresh [32]byte) error {
	var of uint64
	if a.list != nil {
		of = a.list.ManagerOf()
	}
	if a.recordsPolicy() {
		of = max(of, a.record.Manager)
	}
	switch {
	case uint64(a.contract.Version) < of:
		return fmt.Errorf("the boot manager of version %s is not put in place: this machine has that of version %d, which is newer", a.contract.Version, of)
	case of == 0 && a.list != nil && a.list.Replaced(fresh):
		return fmt.Errorf("the boot manager of version %s is not put in place: another has replaced it on this machine", a.contract.Version)
	}
	return nil
}

// inPlace reports whether a boot manager is the only one that the ESP has.
func (a *Agent) inPlace(image [32]byte) bool {
	var here []rootpart.Manager
	err := a.readESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err })
	return err == nil && len(here) == 1 && here[0].Signed == image
}

// noteManager has a record that is about to be written say whose boot manager this machine
// has, where the list knows and there is room. A list that was put back says less.
func (a *Agent) noteManager(r *policy.Record) {
	if a.list != nil {
		r.Manager = max(r.Manager, a.list.ManagerOf())
	}
}

// newerUnlocks reports that the TPM's record has a newer release. Its boot manager may be
// in place since before the record said whose that is.
func (a *Agent) newerUnlocks() error {
	if !a.recordsPolicy() {
		return nil
	}
	for _, b := range a.record.Branches {
		if b.Version > uint64(a.contract.Version) {
			return fmt.Errorf("the boot manager of version %s is not put in place while version %d, which is newer, may open this machine", a.contract.Version, b.Version)
		}
	}
	return nil
}

// listReplaced has the list know which boot managers of the ESP are about to be
// replaced, and by which release, before the first is, and returns them. Cut after it, it
// is done again by that release, or a newer one; the list says no more than what the
// release asks for.
func (a *Agent) listReplaced(fresh [32]byte) (old [][32]byte, err error) {
	if a.list == nil || a.list.Bare {
		return nil, nil
	}
	changed := a.list.TakeManager(uint64(a.contract.Version))
	if !a.tellsReplaced() {
		if changed {
			err = a.keepList()
		}
		return nil, err
	}
	var here []rootpart.Manager
	if err := a.readESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err }); err != nil {
		return nil, err
	}
	changed = a.list.Restore(fresh) || changed
	for _, m := range here {
		if digest := [32]byte(m.Signed); digest != fresh && a.listedManager(digest) {
			old, changed = append(old, digest), a.list.Replace(digest) || changed
		}
	}
	if !changed {
		return old, nil
	}
	if len(old) > 0 && len(a.list.ToRevoke()) == 0 {
		a.Log.Say("dbx holds %d of this machine's old boot managers and gets no more: the firmware goes on starting the one that is replaced now", secureboot.MaxRevoked)
	}
	return old, a.keepList()
}

// listedManager reports whether the list has an image as a boot manager. Anything that
// this machine has signed can be laid in a boot manager's place, and a UKI there must
// not end in dbx: it can be the fallback.
func (a *Agent) listedManager(digest [32]byte) bool {
	return slices.ContainsFunc(a.list.Images(), func(i secureboot.Image) bool {
		return bytes.Equal(i.Digest, digest[:]) && strings.HasPrefix(i.Name, managerPrefix)
	})
}

// listRestored takes back what listReplaced has noted. Cut before it, the release's
// file is still there, and the exchange is tried, and given up, once more.
func (a *Agent) listRestored(old [][32]byte) error {
	changed := false
	for _, digest := range old {
		changed = a.list.Restore(digest) || changed
	}
	if !changed {
		return nil
	}
	return a.keepList()
}

// admitManager lets the root partition unlock by either boot manager, for each system
// that may, before the first file is replaced. Cut before it, nothing has changed; cut
// after it, whichever boot manager starts is known. The old one's boots go when nothing
// of it is left, see oneManager.
func (a *Agent) admitManager(image []byte) error {
	if a.lock == nil || a.lock.Sealed == nil || a.chip.err != nil {
		return nil // a person unlocks it
	}
	fresh, err := rootpart.NewManager(image)
	if err != nil {
		return refusal{err}
	}
	start, err := a.toldStart()
	if err != nil {
		return err
	}
	other := func(m rootpart.Manager) bool { return m != fresh }
	old := slices.DeleteFunc(a.knownManagers(start), func(m rootpart.Manager) bool { return m == fresh })
	if !slices.ContainsFunc(start.Managers, other) {
		return nil // it has its place already
	}
	systems, err := a.unlocking(start, func(im *rootpart.Image) policy.System {
		return start.System(im, []rootpart.Manager{fresh}, old)
	})
	if err != nil {
		return err
	}
	if a.lock.Sealed.Kind == policy.KindPCR {
		reseal, err := a.resealing(start.Boot, systems...)
		if err != nil {
			return err
		}
		return reseal()
	}
	if !a.recordsPolicy() {
		return errors.New("the TPM did not unlock this boot")
	}
	if a.record.Programs && start.Unbound != nil {
		return start.Unbound
	}
	next, err := policy.Compose(a.record.Floor, a.record.Volume, a.record.Programs, systems...)
	if err != nil {
		return err
	}
	next.TakeManager(max(a.record.Manager, uint64(a.contract.Version)), start.Boot)
	if !next.Allows(&start.Boot) {
		return errors.New("the running system would not unlock any more")
	}
	if next.Manager == a.record.Manager && slices.Equal(next.Branches, a.record.Branches) {
		return nil
	}
	return a.replaceRecord(next)
}

// unlocking are the systems that may unlock now, the running one first, each as it
// is told. What is on the ESP counts where it is what the TPM releases to.
func (a *Agent) unlocking(start *rootpart.Start, as func(*rootpart.Image) policy.System) ([]policy.System, error) {
	systems := []policy.System{as(start.Running)}
	for _, n := range a.names {
		if a.isOurs(n) || n.ImageID != a.contract.ImageID || n.Bad() {
			continue
		}
		var im *rootpart.Image
		err := a.readESP(func(files fs.FS) error {
			text, err := rootpart.ReadUKI(files, n)
			if err == nil {
				im, err = rootpart.ReadImage(text)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if known := start.System(im, a.knownManagers(start), nil); slices.ContainsFunc(known.Boots, a.unlocks) {
			systems = append(systems, as(im))
		}
	}
	return systems, nil
}

// unlocks reports whether the TPM releases the secret to a boot.
func (a *Agent) unlocks(b policy.Boot) bool {
	if a.lock.Sealed.Kind == policy.KindPCR {
		d, err := b.BranchOver(a.lock.Sealed.PCRs)
		return err == nil && slices.Contains(a.lock.Sealed.Branches, d)
	}
	return a.record != nil && a.record.Allows(&b)
}

// replaceManager replaces one file by a signed image. The name has one whole boot
// manager or the other at every instant: the new one is written beside it under a
// name that nothing starts, and is known to be on the disk; then the two exchange
// what they have, by a write of one sector; and what is the old one then goes. Cut
// before that write, the spare file is written again; cut after it, the new boot
// manager is in its place, and the spare file is removed the next time.
func (a *Agent) replaceManager(name string, signed []byte) error {
	name, have, spare, err := a.findManager(name)
	if err != nil {
		return err
	}
	spareName := path.Join(path.Dir(name), spareManager)
	var apart error
	if have != nil && !a.isManager(have, signed) {
		err := a.writeESP(func(dir hw.ESPDir) error {
			if err := systems.CheckRoom(dir, int64(len(signed))); err != nil {
				return err
			}
			return enroll.Replace(dir, spareName, signed)
		})
		if err == nil {
			err = a.exchangeManager(name, spareName, signed)
		}
		if err != nil && !errors.Is(err, fat.ErrApart) {
			return err
		}
		if err == nil {
			a.Log.Say("%s is the one of version %s now", name, a.contract.Version)
		}
		apart, spare = err, true
	}
	if !spare {
		return apart
	}
	return errors.Join(apart, a.writeESP(func(dir hw.ESPDir) error {
		return errors.Join(dir.Remove(spareName), dir.SyncDir(path.Dir(spareName)))
	}))
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
		directory := path.Dir(name)
		entries, err := fs.ReadDir(files, directory)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			spare = spare || strings.EqualFold(e.Name(), spareManager)
			if strings.EqualFold(e.Name(), path.Base(name)) {
				actual = path.Join(directory, e.Name())
			}
		}
		if err != nil {
			return err
		}
		have, err = readFile(files, actual, enroll.MaxEFIFile)
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
