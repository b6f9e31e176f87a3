package upkeep

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// A renewal is what it takes for the TPM and the ESP to agree about which systems
// may run.
type renewal struct {
	record   *policy.Record // to be written; nil where it is right
	outdated []bls.Name     // systems under the floor that are not marked bad yet
}

// outdated reports whether the TPM's record is not the one that the
// machine's systems call for.
func outdated(h *host.Host, f Found, tried bootflow.Facts) (bool, error) {
	if tried.Came(bootflow.UpdatePolicy) != bootflow.NotTried || !h.RunsBlessed() || !h.RecordsPolicy() {
		return false, nil
	}
	r, err := renew(h, f, tried.Rewrote())
	if err != nil {
		return false, err
	}
	return r.record != nil || len(r.outdated) > 0, nil
}

// renew compares the record with the ESP. A fallback is known by its version: the
// record has its branch, and never takes one that it had not, so that it does not
// matter which file bears the name. One whose trial is about to get its tries
// again counts as one that has them.
func renew(h *host.Host, f Found, revoked bootflow.Outcome) (*renewal, error) {
	boot, err := h.ToldBoot()
	if err != nil {
		return nil, err
	}
	q := policy.Renewal{Boot: boot, Floor: h.Had.Floor, OneManager: revoked == bootflow.NotTried && !f.ESPDiffers && oneManager(h)}
	var others []bls.Name
	for _, n := range h.Names {
		if n.ImageID != h.Contract.ImageID || n.Version == h.Contract.Version {
			continue
		}
		if !n.Bad() {
			others = append(others, n)
		}
		if !n.Bad() || f.Verdict == bootflow.Interrupted {
			q.Startable = append(q.Startable, uint64(n.Version))
		}
	}
	next, err := h.Record.Renew(q)
	if err != nil {
		return nil, err
	}
	r := new(renewal)
	if next != h.Record {
		r.record = next
	}
	for _, n := range others {
		if epoch, known := epochOf(h, n); known && epoch < next.Floor {
			r.outdated = append(r.outdated, n)
		}
	}
	return r, nil
}

// epochOf is a system's epoch, by the record, or else by its own contract.
func epochOf(h *host.Host, n bls.Name) (epoch uint64, known bool) {
	for _, b := range h.Record.Branches {
		if b.Version == uint64(n.Version) {
			return b.Epoch, true
		}
	}
	c, _, err := h.ContractOf(n)
	if err != nil {
		return 0, false
	}
	return c.Epoch, true
}

// UpdatePolicy writes the TPM's record again after the ESP's systems have changed: a
// trial was blessed or has failed, or the fetcher has emptied a slot.
//
// The floor is noted on the root partition first. Cut after that, the higher one
// counts wherever the secret is known: the old system is given no root partition, and
// this is done again at the next boot. In the other order anyone who deletes the record
// after a cut would take the floor with it.
//
// The record is one NV write. Cut before it, the old record stands: it allows the
// running system, and one or two that may be gone; this is done again at the next
// boot. Cut after it, the new record stands, and it allows the running system,
// which is blessed, and the other one, if that may run at all. A system under the
// new floor still looks startable then; it gets no key and marks itself bad, or
// is marked at the next boot. In the other order a cut would leave a fallback that
// is given up while the floor does not ask for it yet.
//
// condemned: the ESP was written to, and what is given up loses its copy.
func UpdatePolicy(h *host.Host, f Found, revoked bootflow.Outcome) (condemned bool, err error) {
	r, err := renew(h, f, revoked)
	if err != nil {
		return false, err
	}
	if r.record != nil {
		old := h.Record
		r.record = overPrograms(h, r.record)
		h.NoteManager(r.record)
		if err := h.Guarantee(h.Had.Raise(rootpart.Of(r.record, rootpart.Enforces(h.FirmwareKeys))), h.Secret); err != nil {
			return false, err
		}
		if err := h.WriteRecord(h.Secret, h.Lock.Sealed, r.record); err != nil {
			return false, err
		}
		h.Record = r.record
		for _, b := range old.Branches {
			gone := func(n policy.Branch) bool { return n.Version == b.Version }
			if !slices.ContainsFunc(r.record.Branches, gone) {
				h.Log.Say("version %d unlocks nothing any more", b.Version)
			}
		}
		if r.record.Floor > old.Floor {
			h.State.Floor = r.record.Floor
			h.NoteSelf(journal.Floor, fmt.Sprintf("the lowest epoch that may run rises from %d to %d", old.Floor, r.record.Floor))
		}
	}
	if len(r.outdated) == 0 {
		return false, nil
	}
	return true, h.WriteESP(func(dir hw.ESPDir) error {
		var errs []error
		for _, n := range r.outdated {
			errs = append(errs, esp.Condemn(dir, n))
			h.Log.Say("%s is under the floor and loses its tries", n)
		}
		return errors.Join(errs...)
	})
}

// oneManager reports whether the boot manager that has started this boot is the only
// one that is left, on the ESP and among its copies, and the one that the release has
// brought, where that is still there; and whether dbx is what it was when this boot was
// measured. It is asked only while another is being replaced, or dbx has changed.
func oneManager(h *host.Host) bool {
	if !h.Record.Passing() || !copiedManagers(h) {
		return false
	}
	start, err := h.ToldStart()
	if err != nil || start.Unbound != nil || len(start.Managers) != 1 {
		return false
	}
	image, err := h.Store.Read(bootmanager.File(h), enroll.MaxEFIFile)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	brought, derr := authenticode.Digest(image)
	return err == nil && derr == nil && brought == start.Managers[0].Signed
}

// copiedManagers reports whether the copies of the boot manager are of those on the
// ESP. Two versions may be alike in size, which is what an ordinary boot compares.
func copiedManagers(h *host.Host) bool {
	var here []rootpart.Manager
	err := h.ReadESP(func(files fs.FS) (err error) { here, err = rootpart.FindManagers(files); return err })
	copies, cerr := Keeper(h).Managers()
	if err != nil || cerr != nil {
		return false
	}
	for _, image := range copies {
		m, err := rootpart.NewManager(image)
		if err != nil || !slices.Contains(here, m) {
			return false
		}
	}
	return true
}

// overPrograms makes a record that has the running system alone one over PCR 4, where
// that is accounted for. With another system beside it that waits for the next
// release: the fallback may be of a time that could not read such a record.
func overPrograms(h *host.Host, r *policy.Record) *policy.Record {
	other := func(b policy.Branch) bool { return b.Version != uint64(h.Contract.Version) }
	if r.Programs || slices.ContainsFunc(r.Branches, other) {
		return r
	}
	start, err := h.ToldStart()
	if err != nil || start.Unbound != nil {
		return r
	}
	next, err := policy.Compose(r.Floor, r.Volume, true, start.System(start.Running, h.KnownManagers(start), nil))
	if err != nil {
		return r
	}
	next.TakeManager(r.Manager, start.Boot)
	if !next.Allows(&start.Boot) {
		return r
	}
	return next
}
