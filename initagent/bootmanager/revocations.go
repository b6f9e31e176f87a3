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
		h.List.TryRevocations(uint64(v))
		return errors.Join(fmt.Errorf("what the release wants in dbx: %w", err), h.KeepList())
	}
	take, refused := secureboot.JudgeRevocations(r.DBX(), h.FirmwareKeys.DBX.Content, h.List.Owner, needed)
	for i, no := range refused {
		if i == maxTold {
			h.Log.Say("dbx does not get %d more", len(refused)-maxTold)
			break
		}
		h.Log.Say("dbx does not get the %s that release %s names: %s", no.Entry, v, no.Why)
	}
	if len(take) > 0 {
		if err := appendRevocations(h, start, take, func() { h.List.TryRevocations(uint64(v)) }); err != nil {
			return fmt.Errorf("have the firmware take %d entries for dbx (after %d attempts it is left alone): %w", len(take), secureboot.MaxTries, err)
		}
	}
	h.List.TakeRevocations(uint64(v), take)
	if err := h.KeepList(); err != nil { // the next boot does it
		h.Log.Say("what the firmware refuses by now was not noted: %v", err)
	}
	if len(take) > 0 {
		h.Log.Say("the firmware does not start %d programs any more that release %s names", len(take), v)
	}
	return nil
}
