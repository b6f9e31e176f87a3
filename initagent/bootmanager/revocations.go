package bootmanager

import (
	"bytes"
	"errors"
	"fmt"
	"path"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// brings reports whether the running release says that something shall not start any more,
// and this machine has not dealt with that. Anybody can have written the file: what is in
// it counts with the release's signature alone, so not where releases have none.
func brings(h *host.Host) bool {
	if len(h.Contract.ReleaseKey) == 0 || !h.List.RevocationsWait(uint64(h.Contract.Version)) {
		return false
	}
	text, err := h.Store.Read(path.Join(fetched.Directory, h.Contract.Version.String(), release.FileName), release.MaxSize)
	return err == nil && bytes.Contains(text, []byte(`"revocations"`))
}

// maxTold is how many entries that are left out are named.
const maxTold = 8

// tryRelease counts that the release's entries were looked at, so that a machine on which
// that fails, for a reason that may stay, does not say so at each start.
func tryRelease(h *host.Host) error {
	if !brings(h) {
		return nil
	}
	h.List.TryRevocations(uint64(h.Contract.Version), nil)
	return h.KeepList()
}

// revokeForRelease has the firmware refuse what the running release names, but for what
// this machine needs. The release has proven itself by now, and what ran before it is
// among what is needed.
func revokeForRelease(h *host.Host, start *rootpart.Start, needed secureboot.Needed) error {
	if !brings(h) {
		return nil
	}
	v := h.Contract.Version
	r, err := fetched.Release(h, v)
	if err == nil {
		err = r.Matches(h.Contract)
	}
	if err != nil { // not by the distributor, or damaged: it is looked at once more
		return errors.Join(fmt.Errorf("what the release wants in dbx: %w", err), tryRelease(h))
	}
	take, refused := secureboot.JudgeRevocations(r.DBX(), h.FirmwareKeys.DBX.Content, h.List.Owner, needed)
	tell(h, refused)
	if h.List.RevocationsRefused(take) {
		h.Log.Say("dbx does not get the %d entries that release %s names: this firmware has refused them before", len(take), v)
		take = nil
	}
	if len(take) > 0 {
		tried := false
		err := appendRevocations(h, start, take, func() { h.List.TryRevocations(uint64(v), take); tried = true })
		if err != nil && !tried {
			err = errors.Join(err, tryRelease(h))
		}
		if err != nil {
			return fmt.Errorf("have the firmware take entries for dbx, %d that release %s names (after %d attempts it is left alone): %w", len(take), v, secureboot.MaxTries, err)
		}
		h.Log.Say("dbx has what release %s names, %d more entries: the firmware starts nothing of it any more", v, len(take))
	}
	h.List.TakeRevocations(uint64(v), take)
	if err := h.KeepList(); err != nil { // the next boot does it
		h.Log.Say("what the firmware refuses by now was not noted: %v", err)
	}
	return nil
}

// tell says which entries of the release are left out, and why.
func tell(h *host.Host, refused []secureboot.Refusal) {
	for i, no := range refused {
		if i == maxTold {
			h.Log.Say("dbx does not get %d more", len(refused)-maxTold)
			return
		}
		h.Log.Say("dbx does not get the %s that release %s names: %s", no.Entry, h.Contract.Version, no.Why)
	}
}
