package host

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/rootpart"
)

// RecordsPolicy reports whether the TPM keeps the list of systems, and has let
// this boot unlock by it.
func (h *Host) RecordsPolicy() bool {
	return h.Chip.Err == nil && h.Secret != nil && h.Lock != nil && h.Lock.Sealed != nil && h.Lock.Sealed.Kind == policy.KindNV &&
		h.Record != nil && !h.Record.Provisional()
}

// ReplaceRecord writes the record where it is another. What it stands for is noted
// first.
func (h *Host) ReplaceRecord(r *policy.Record) error {
	if r == h.Record {
		return nil
	}
	h.NoteManager(r)
	if err := h.Guarantee(h.Had.Raise(rootpart.Of(r, rootpart.Enforces(h.FirmwareKeys))), h.Secret); err != nil {
		return err
	}
	if err := h.WriteRecord(h.Secret, h.Lock.Sealed, r); err != nil {
		return err
	}
	h.Record = r
	return nil
}

// AdmitVariable lets every system that may unlock now do so with another content of db or dbx
// as well. Each must be among them, or a fallback would be lost. The boots of now are marked as
// passing: the next boot settles the record to the PCR 7 that it was started with.
func (h *Host) AdmitVariable(start *rootpart.Start, v secureboot.Variable, content []byte) error {
	log, _, err := h.ReadLog()
	if err != nil {
		return err
	}
	fresh, err := start.With(log, h.FirmwareKeys, v, content)
	if err != nil {
		return err
	}
	managers := h.KnownManagers(start)
	all, err := h.Unlocking(start, func(im *rootpart.Image) policy.System {
		s := fresh.System(im, managers, nil)
		s.Passing = start.System(im, managers, nil).Boots
		return s
	})
	if err != nil {
		return err
	}
	next, err := policy.Compose(h.Record.Floor, h.Record.Volume, h.Record.Programs, all...)
	if err != nil {
		return err
	}
	next.TakeManager(h.Record.Manager, start.Boot)
	if !next.Allows(&start.Boot) || !next.Allows(&fresh.Boot) {
		return errors.New("the running system would not unlock any more")
	}
	for _, b := range h.Record.Branches {
		if !slices.ContainsFunc(next.Branches, func(n policy.Branch) bool { return n.Version == b.Version }) {
			return fmt.Errorf("version %d would not unlock any more", b.Version)
		}
	}
	return h.ReplaceRecord(next)
}

// NoteManager has a record that is about to be written say whose boot manager this machine
// has, where the list knows and there is room. A list that was put back says less.
func (h *Host) NoteManager(r *policy.Record) {
	if h.List != nil {
		r.Manager = max(r.Manager, h.List.ManagerOf())
	}
}

// Resealing are the boots to seal the secret to for systems that may unlock, this one
// among them, on a machine whose TPM has no room for a record; nil where it is sealed to
// all of them. It is sealed once more, and the root partition's header gets that object in
// place of the old one. The header has two copies, of which a cut leaves one.
// Anyone who keeps a copy of the old header still has an object that the old system
// unseals: there is no floor on such a machine.
func (h *Host) Resealing(now policy.Boot, systems ...policy.System) ([]policy.Boot, error) {
	mine, err := h.Lock.Sealed.Allows(now)
	switch {
	case err != nil:
		return nil, err
	case !mine:
		return nil, errors.New("the TPM did not unlock this boot, so that what it would make of the new system is not known")
	}
	boots := []policy.Boot{now}
	missing := false
	for _, s := range systems {
		for _, b := range slices.Concat(s.Boots, s.Passing) {
			have, err := h.Lock.Sealed.Allows(b)
			if err != nil {
				return nil, err
			}
			boots, missing = append(boots, b), missing || !have
		}
	}
	if !missing {
		return nil, nil
	}
	return boots, nil
}

// Reseal seals the secret to these boots, in the place of the object in the header.
func (h *Host) Reseal(boots ...policy.Boot) error {
	keys, err := h.StoredKeys(h.Secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	volumeKey, err := h.OpenByTPM(h.Secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	sealed, err := h.Chip.TPM.SealPCR(h.Secret, h.Lock.Sealed.PCRs, boots...)
	if err != nil {
		return err
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	h.Binding().CarryPhrase(h.Random, h.Lock, h.Secret, h.Secret, sealed)
	err = h.Lock.Rebind(h.Random, f, volumeKey, h.Secret, sealed, ownerKey(keys))
	return errors.Join(err, f.Close())
}

// Unlocking are the systems that may unlock now, the running one first, each as it
// is told. What is on the ESP counts where it is what the TPM releases to.
func (h *Host) Unlocking(start *rootpart.Start, as func(*rootpart.Image) policy.System) ([]policy.System, error) {
	systems := []policy.System{as(start.Running)}
	for _, n := range h.Names {
		if h.IsOurs(n) || n.ImageID != h.Contract.ImageID || n.Bad() {
			continue
		}
		var im *rootpart.Image
		err := h.ReadESP(func(files fs.FS) error {
			text, err := rootpart.ReadUKI(files, n)
			if err == nil {
				im, err = rootpart.ReadImage(text)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if known := start.System(im, h.KnownManagers(start), nil); slices.ContainsFunc(known.Boots, h.unlocks) {
			systems = append(systems, as(im))
		}
	}
	return systems, nil
}

// unlocks reports whether the TPM releases the secret to a boot.
func (h *Host) unlocks(b policy.Boot) bool {
	if h.Lock.Sealed.Kind == policy.KindPCR {
		allowed, err := h.Lock.Sealed.Allows(b)
		return err == nil && allowed
	}
	return h.Record != nil && h.Record.Allows(&b)
}

// Acceptable returns the record for an owner who accepts the machine as it is,
// and the boots that it allows.
func (h *Host) Acceptable(b rootpart.Binding, start *rootpart.Start, volumeKey []byte, secret *policy.Secret) (*policy.Record, []policy.Boot, error) {
	return b.Acceptable(h.fallbacks(b, start, secret), h.Lock, secret, volumeKey, h.ReadESP)
}

func (h *Host) fallbacks(b rootpart.Binding, start *rootpart.Start, secret *policy.Secret) rootpart.Fallbacks {
	q := rootpart.Fallbacks{Table: h.Table, Running: h.Contract, Start: start, Firmware: h.FirmwareKeys, List: h.List, Had: b.Had, Also: h.keysAhead(secret), Say: h.Log.Say}
	if last := h.LastGood(secret); last != nil && last.Authentic {
		if b, err := rootpart.Logged(last.Log); err == nil {
			q.Known = append(q.Known, b)
		}
	}
	return q
}

// keysAhead are what PCR 7 will be while a replacement of the Secure Boot keys goes on:
// a record that is written meanwhile must allow it.
func (h *Host) keysAhead(secret *policy.Secret) []pcr.Digest {
	if !rootpart.KeysUnfinished(h.Store, h.Lock) {
		return nil
	}
	log, _, err := h.ReadLog()
	if err != nil {
		return nil
	}
	return rootpart.Ahead(h.Store, secret, h.Lock, h.FirmwareKeys, log)
}

// Composed is the record for a start that the TPM has released the secret to.
func (h *Host) Composed(start *rootpart.Start, volumeKey []byte, secret *policy.Secret, also []pcr.Digest) (rootpart.Binding, *policy.Record, []policy.Boot, error) {
	b := h.Binding()
	b.Proves = false // nothing unseals twice in one boot
	b.Had, b.Enforces = rootpart.Had(h.Had, h.Lock, secret), start.SecureBoot
	q := h.fallbacks(b, start, secret)
	q.Also = also
	record, boots, err := b.Acceptable(q, h.Lock, secret, volumeKey, h.ReadESP)
	return b, record, boots, err
}

// RecordStart has the TPM release the secret for a start, and for PCR 7 with other
// values besides.
func (h *Host) RecordStart(start *rootpart.Start, volumeKey []byte, secret *policy.Secret, also []pcr.Digest) error {
	b, record, boots, err := h.Composed(start, volumeKey, secret, also)
	if err != nil {
		return err
	}
	accepted, err := b.Accept(h.Lock, secret, record)
	if err == nil && !accepted {
		err = h.sealAgain(b, volumeKey, secret, record, boots)
	}
	if err != nil {
		return fmt.Errorf("the TPM's record: %w", err)
	}
	if accepted {
		h.Record = record
	}
	return h.Guarantee(b.Now(record, h.Lock), secret)
}

// sealAgain is for a TPM without room for the record.
func (h *Host) sealAgain(b rootpart.Binding, volumeKey []byte, secret *policy.Secret, record *policy.Record, boots []policy.Boot) error {
	keys, err := h.StoredKeys(secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	return errors.Join(b.Rebind(h.Random, f, h.Lock, rootpart.Rebinding{VolumeKey: volumeKey, Secret: secret, Keys: keys, Record: record, Boots: boots}), f.Close())
}

// RewriteRecord has the TPM release the secret for how this machine starts now, and for
// nothing else but for PCR 7 with other values. Nobody is asked: less than the machine had
// is refused.
func (h *Host) RewriteRecord(volumeKey []byte, secret *policy.Secret, also []pcr.Digest) error {
	if h.Chip.Err != nil {
		return h.Chip.Err
	}
	start, err := h.ToldStart()
	if err != nil {
		return err
	}
	return h.RecordStart(start, volumeKey, secret, also)
}

// Admits has the TPM's record be for this boot, which the TPM has opened, or its owner
// has accepted, and for PCR 7 with these values besides.
func (h *Host) Admits(volumeKey []byte, secret *policy.Secret) func([]pcr.Digest) error {
	return func(values []pcr.Digest) error {
		h.TakeList(secret)
		return h.RewriteRecord(volumeKey, secret, values)
	}
}
