package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// managerFile is where the fetcher has put the running release's boot manager.
func (a *Agent) managerFile() string {
	return path.Join(fetched.Directory, a.Contract.Version.String(), release.BootManagerFile)
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
	if _, refused := errors.AsType[fetched.Refusal](err); err == nil && !a.exchanging() || refused {
		err = errors.Join(err, a.Store.Remove(a.managerFile()))
	}
	return err
}

// exchanging reports whether the boot manager is being replaced: the old one still
// unlocks, or is still to be revoked.
func (a *Agent) exchanging() bool {
	return a.TellsReplaced() && (a.Record.Passing() || len(a.List.ToRevoke()) > 0)
}

func (a *Agent) newManager() error {
	r, err := fetched.Release(&a.Host, a.Contract.Version)
	if err != nil {
		return err
	}
	if err := r.Matches(a.Contract); err != nil {
		return fetched.Refused(err)
	}
	file, _ := r.File(release.BootManagerFile)
	image, err := fetched.File(&a.Host, r, file)
	if err != nil {
		return err
	}
	if err := a.ListRelease(r); err != nil {
		return err
	}
	signed, err := fetched.Sign(&a.Host, image)
	if err != nil {
		return err
	}
	if err := a.newest([32]byte(file.Authenticode)); err != nil {
		return fetched.Refused(err)
	}
	if err := a.newerUnlocks(); err != nil {
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
	for _, name := range layout.Managers() {
		err := a.ReplaceManager(name, signed)
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
	return fetched.Refused(errors.Join(errors.New(stays), a.ListRestored(old)))
}

// newest refuses the boot manager of an older release than the one whose boot manager this
// machine has. The release's description is public, so that anybody who can start a
// fallback could lay it there: the newer one would be replaced, and revoked for good. Root
// can put an older list back, or damage it; the TPM's record is fresh. A list of the time
// before that was noted knows which ones were replaced.
func (a *Agent) newest(fresh [32]byte) error {
	var of uint64
	if a.List != nil {
		of = a.List.ManagerOf()
	}
	if a.RecordsPolicy() {
		of = max(of, a.Record.Manager)
	}
	switch {
	case uint64(a.Contract.Version) < of:
		return fmt.Errorf("the boot manager of version %s is not put in place: this machine has that of version %d, which is newer", a.Contract.Version, of)
	case of == 0 && a.List != nil && a.List.Replaced(fresh):
		return fmt.Errorf("the boot manager of version %s is not put in place: another has replaced it on this machine", a.Contract.Version)
	}
	return nil
}

// newerUnlocks reports that the TPM's record has a newer release. Its boot manager may be
// in place since before the record said whose that is.
func (a *Agent) newerUnlocks() error {
	if !a.RecordsPolicy() {
		return nil
	}
	for _, b := range a.Record.Branches {
		if b.Version > uint64(a.Contract.Version) {
			return fmt.Errorf("the boot manager of version %s is not put in place while version %d, which is newer, may open this machine", a.Contract.Version, b.Version)
		}
	}
	return nil
}

// listReplaced has the list know which boot managers of the ESP are about to be
// replaced, and by which release, before the first is, and returns them. Cut after it, it
// is done again by that release, or a newer one; the list says no more than what the
// release asks for.
func (a *Agent) listReplaced(fresh [32]byte) (old [][32]byte, err error) {
	if a.List == nil || a.List.Bare {
		return nil, nil
	}
	changed := a.List.TakeManager(uint64(a.Contract.Version))
	if !a.TellsReplaced() {
		if changed {
			err = a.KeepList()
		}
		return nil, err
	}
	var here []rootpart.Manager
	if err := a.ReadESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err }); err != nil {
		return nil, err
	}
	changed = a.List.Restore(fresh) || changed
	for _, m := range here {
		if digest := [32]byte(m.Signed); digest != fresh && a.ListedManager(digest) {
			old, changed = append(old, digest), a.List.Replace(digest) || changed
		}
	}
	if !changed {
		return old, nil
	}
	if len(old) > 0 && len(a.List.ToRevoke()) == 0 {
		a.Log.Say("dbx holds %d of this machine's old boot managers and gets no more: the firmware goes on starting the one that is replaced now", secureboot.MaxRevoked)
	}
	return old, a.KeepList()
}

// admitManager lets the root partition unlock by either boot manager, for each system
// that may, before the first file is replaced. Cut before it, nothing has changed; cut
// after it, whichever boot manager starts is known. The old one's boots go when nothing
// of it is left, see oneManager.
func (a *Agent) admitManager(image []byte) error {
	if a.Lock == nil || a.Lock.Sealed == nil || a.Chip.Err != nil {
		return nil // a person unlocks it
	}
	fresh, err := rootpart.NewManager(image)
	if err != nil {
		return fetched.Refused(err)
	}
	start, err := a.ToldStart()
	if err != nil {
		return err
	}
	other := func(m rootpart.Manager) bool { return m != fresh }
	old := slices.DeleteFunc(a.KnownManagers(start), func(m rootpart.Manager) bool { return m == fresh })
	if !slices.ContainsFunc(start.Managers, other) {
		return nil // it has its place already
	}
	systems, err := a.Unlocking(start, func(im *rootpart.Image) policy.System {
		return start.System(im, []rootpart.Manager{fresh}, old)
	})
	if err != nil {
		return err
	}
	if a.Lock.Sealed.Kind == policy.KindPCR {
		boots, err := a.Resealing(start.Boot, systems...)
		if err != nil || boots == nil {
			return err
		}
		return a.Reseal(boots...)
	}
	if !a.RecordsPolicy() {
		return errors.New("the TPM did not unlock this boot")
	}
	if a.Record.Programs && start.Unbound != nil {
		return start.Unbound
	}
	next, err := policy.Compose(a.Record.Floor, a.Record.Volume, a.Record.Programs, systems...)
	if err != nil {
		return err
	}
	next.TakeManager(max(a.Record.Manager, uint64(a.Contract.Version)), start.Boot)
	if !next.Allows(&start.Boot) {
		return errors.New("the running system would not unlock any more")
	}
	if next.Manager == a.Record.Manager && slices.Equal(next.Branches, a.Record.Branches) {
		return nil
	}
	return a.ReplaceRecord(next)
}
