// Package bootmanager puts the boot manager that a release has brought in the place of an
// older one, and has the firmware refuse that one then.
//
// It refuses what the release has not signed, and the boot manager of a release that is
// older than the one whose boot manager this machine has.
package bootmanager

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// File is where the fetcher has put the running release's boot manager.
func File(h *host.Host) string {
	return path.Join(fetched.Directory, h.Contract.Version.String(), release.BootManagerFile)
}

// Waits reports whether the running release has brought a boot manager that
// was not looked at since it has proven itself.
func Waits(h *host.Host) bool {
	_, err := h.Store.Read(File(h), 0)
	return errors.Is(err, hw.ErrUnfit) // it is there
}

// Update puts the boot manager of the running release in the place of an
// older one. That waits for the bless, since there is only one: until then it must
// be the one that has started the fallback. The running system could have changed
// the file by now, so it counts only with the release's signature.
//
// The file stays until the exchange has settled and the old one is in dbx: anyone who
// puts the old one back on the ESP meanwhile, which this firmware still starts, finds
// it replaced again at every boot.
func Update(h *host.Host) error {
	err := newManager(h)
	if _, refused := errors.AsType[fetched.Refusal](err); err == nil && !exchanging(h) || refused {
		err = errors.Join(err, h.Store.Remove(File(h)))
	}
	return err
}

// exchanging reports whether the boot manager is being replaced: the old one still
// unlocks, or is still to be revoked.
func exchanging(h *host.Host) bool {
	return tellsReplaced(h) && (h.Record.Passing() || len(h.List.ToRevoke()) > 0)
}

func newManager(h *host.Host) error {
	r, err := fetched.Release(h, h.Contract.Version)
	if err != nil {
		return err
	}
	if err := r.Matches(h.Contract); err != nil {
		return fetched.Refused(err)
	}
	file, _ := r.File(release.BootManagerFile)
	image, err := fetched.File(h, r, file)
	if err != nil {
		return err
	}
	if err := h.ListRelease(r); err != nil {
		return err
	}
	signed, err := fetched.Sign(h, image)
	if err != nil {
		return err
	}
	if err := newest(h, [32]byte(file.Authenticode)); err != nil {
		return fetched.Refused(err)
	}
	if err := newerUnlocks(h); err != nil {
		if inPlace(h, [32]byte(file.Authenticode)) {
			return nil // the newer release has the same one, or none
		}
		return err // it may have its place once the newer release was given up
	}
	old, err := listReplaced(h, [32]byte(file.Authenticode))
	if err != nil {
		return err
	}
	if err := admitManager(h, signed); err != nil {
		return fmt.Errorf("let the new boot manager's boots unlock the root partition: %w", err)
	}
	stays := ""
	for _, name := range layout.Managers() {
		err := h.ReplaceManager(name, signed)
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
	return fetched.Refused(errors.Join(errors.New(stays), listRestored(h, old)))
}

// inPlace reports whether a boot manager is the only one that the ESP has.
func inPlace(h *host.Host, image [32]byte) bool {
	var here []rootpart.Manager
	err := h.ReadESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err })
	return err == nil && len(here) == 1 && here[0].Signed == image
}

// newest refuses the boot manager of an older release than the one whose boot manager this
// machine has. The release's description is public, so that anybody who can start a
// fallback could lay it there: the newer one would be replaced, and revoked for good. Root
// can put an older list back, or damage it; the TPM's record is fresh. A list of the time
// before that was noted knows which ones were replaced.
func newest(h *host.Host, fresh [32]byte) error {
	var of uint64
	if h.List != nil {
		of = h.List.ManagerOf()
	}
	if h.RecordsPolicy() {
		of = max(of, h.Record.Manager)
	}
	switch {
	case uint64(h.Contract.Version) < of:
		return fmt.Errorf("the boot manager of version %s is not put in place: this machine has that of version %d, which is newer", h.Contract.Version, of)
	case of == 0 && h.List != nil && h.List.Replaced(fresh):
		return fmt.Errorf("the boot manager of version %s is not put in place: another has replaced it on this machine", h.Contract.Version)
	}
	return nil
}

// newerUnlocks reports that the TPM's record has a newer release. Its boot manager may be
// in place since before the record said whose that is.
func newerUnlocks(h *host.Host) error {
	if !h.RecordsPolicy() {
		return nil
	}
	for _, b := range h.Record.Branches {
		if b.Version > uint64(h.Contract.Version) {
			return fmt.Errorf("the boot manager of version %s is not put in place while version %d, which is newer, may open this machine", h.Contract.Version, b.Version)
		}
	}
	return nil
}

// listReplaced has the list know which boot managers of the ESP are about to be
// replaced, and by which release, before the first is, and returns them. Cut after it, it
// is done again by that release, or a newer one; the list says no more than what the
// release asks for.
func listReplaced(h *host.Host, fresh [32]byte) (old [][32]byte, err error) {
	if h.List == nil || h.List.Bare {
		return nil, nil
	}
	changed := h.List.TakeManager(uint64(h.Contract.Version))
	if !tellsReplaced(h) {
		if changed {
			err = h.KeepList()
		}
		return nil, err
	}
	var here []rootpart.Manager
	if err := h.ReadESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err }); err != nil {
		return nil, err
	}
	changed = h.List.Restore(fresh) || changed
	for _, m := range here {
		if digest := [32]byte(m.Signed); digest != fresh && listedManager(h, digest) {
			old, changed = append(old, digest), h.List.Replace(digest) || changed
		}
	}
	if !changed {
		return old, nil
	}
	if len(old) > 0 && len(h.List.ToRevoke()) == 0 {
		h.Log.Say("dbx holds %d of this machine's old boot managers and gets no more: the firmware goes on starting the one that is replaced now", secureboot.MaxRevoked)
	}
	return old, h.KeepList()
}

// admitManager lets the root partition unlock by either boot manager, for each system
// that may, before the first file is replaced. Cut before it, nothing has changed; cut
// after it, whichever boot manager starts is known. The old one's boots go when nothing
// of it is left, see upkeep.oneManager.
func admitManager(h *host.Host, image []byte) error {
	if h.Lock == nil || h.Lock.Sealed == nil || h.Chip.Err != nil {
		return nil // a person unlocks it
	}
	fresh, err := rootpart.NewManager(image)
	if err != nil {
		return fetched.Refused(err)
	}
	start, err := h.ToldStart()
	if err != nil {
		return err
	}
	other := func(m rootpart.Manager) bool { return m != fresh }
	old := slices.DeleteFunc(h.KnownManagers(start), func(m rootpart.Manager) bool { return m == fresh })
	if !slices.ContainsFunc(start.Managers, other) {
		return nil // it has its place already
	}
	systems, err := h.Unlocking(start, func(im *rootpart.Image) policy.System {
		return start.System(im, []rootpart.Manager{fresh}, old)
	})
	if err != nil {
		return err
	}
	if h.Lock.Sealed.Kind == policy.KindPCR {
		boots, err := h.Resealing(start.Boot, systems...)
		if err != nil || boots == nil {
			return err
		}
		return h.Reseal(boots...)
	}
	if !h.RecordsPolicy() {
		return errors.New("the TPM did not unlock this boot")
	}
	if h.Record.Programs && start.Unbound != nil {
		return start.Unbound
	}
	next, err := policy.Compose(h.Record.Floor, h.Record.Volume, h.Record.Programs, systems...)
	if err != nil {
		return err
	}
	next.TakeManager(max(h.Record.Manager, uint64(h.Contract.Version)), start.Boot)
	if !next.Allows(&start.Boot) {
		return errors.New("the running system would not unlock any more")
	}
	if next.Manager == h.Record.Manager && slices.Equal(next.Branches, h.Record.Branches) {
		return nil
	}
	return h.ReplaceRecord(next)
}

// listedManager reports whether the list has an image as a boot manager. Anything that
// this machine has signed can be laid in a boot manager's place, and a UKI there must
// not end in dbx: it can be the fallback.
func listedManager(h *host.Host, digest [32]byte) bool {
	return slices.ContainsFunc(h.List.Images(), func(i secureboot.Image) bool {
		return bytes.Equal(i.Digest, digest[:]) && strings.HasPrefix(i.Name, host.ManagerPrefix)
	})
}

// listRestored takes back what listReplaced has noted. Cut before it, the release's
// file is still there, and the exchange is tried, and given up, once more.
func listRestored(h *host.Host, old [][32]byte) error {
	changed := false
	for _, digest := range old {
		changed = h.List.Restore(digest) || changed
	}
	if !changed {
		return nil
	}
	return h.KeepList()
}
