package rootpart

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// Logged is the boot that an event log tells of, as it is when the initramfs
// phase has begun.
func Logged(log *pcr.Log) (policy.Boot, error) {
	values, err := log.PCRs()
	if err != nil {
		return policy.Boot{}, err
	}
	return policy.Boot{
		PCR4:  values[pcr.BootPrograms],
		PCR7:  values[pcr.SecureBoot],
		PCR11: pcr.Phases(values[pcr.KernelImage], pcr.EnterInitrd),
		PCR12: values[pcr.KernelConfig],
		PCR13: values[pcr.SystemExts],
	}, nil
}

// A Binding is a TPM that the machine secret is bound to.
type Binding struct {
	TPM   *tpm.TPM
	Store hw.Store // the root partition's, once it is open: a copy of the phrase lies there
	Say   func(format string, args ...any)
	// Proves: this phase of the boot is one that may unseal, so that what was
	// sealed is unsealed once before anything depends on it. The recovery
	// console's is not.
	Proves bool
	// Needed is an object whose NV index stays, even if it looks as if a
	// provisioning had left it; or nil.
	Needed *policy.Sealed
	// Had is what the machine has had, and Consent asks its owner whether it may
	// have less; an error is a no.
	Had      Guarantees
	Consent  func(lost []words.Line) error
	Enforces bool // the firmware starts signed images alone
	// Older is what would be given up besides, in words for the owner; see Start.Older.
	Older []words.Line
	// room makes some in a TPM that has none for the index; or nil.
	room func() error
	// Seen reports whether a record has a boot by the boot manager that has started this
	// one; nil where the start to come is another's.
	Seen func(old *policy.Record) bool
}

// ErrWeaker refuses what would protect the machine less than before.
var ErrWeaker = words.Errorf(words.Weaker)

// Had is what a machine has had, by its own note and by what its header says of the
// TPM: a machine of an earlier release has no note. Of a PIN the secret itself says it,
// where the note is gone, whatever the header has.
func Had(noted Guarantees, lock *rootlock.Lock, secret *policy.Secret) Guarantees {
	noted.Record = noted.Record || lock.Sealed != nil && lock.Sealed.Kind == policy.KindNV
	noted.PIN = noted.PIN || lock.HasPIN() || noted.unknown != nil && secret.Guarded()
	return noted
}

// Now is what the machine has once the record counts, or what took its place.
func (b Binding) Now(r *policy.Record, lock *rootlock.Lock) Guarantees {
	return b.NowSealed(r, lock.Sealed)
}

// NowSealed is Now for an object that the header does not name yet; nil for none.
func (b Binding) NowSealed(r *policy.Record, sealed *policy.Sealed) Guarantees {
	g := Guarantees{Format: guaranteesFormat, Floor: b.Had.Floor, SecureBoot: b.Enforces}
	if sealed != nil && sealed.Kind == policy.KindNV {
		g = g.Raise(Of(r, b.Enforces))
	}
	g.PIN = sealed != nil && sealed.PIN != nil
	return g
}

// consent asks the owner, where the machine would get less than it had by what is sealed
// or accepted, with a PIN or without.
func (b Binding) consent(record *policy.Record, pin bool, kind policy.Kind) error {
	now := Guarantees{Record: kind == policy.KindNV, Programs: record.Programs && kind == policy.KindNV, SecureBoot: b.Enforces, PIN: pin}
	lost := append(b.Had.Lost(now), b.Older...)
	switch {
	case len(lost) == 0:
		return nil
	case b.Consent == nil:
		return ErrWeaker
	}
	return b.Consent(lost)
}

// Seal seals the machine secret to an NV index with this record, or, where the
// TPM has no room or no command for one, to the one boot and the others.
func (b Binding) Seal(secret *policy.Secret, boot policy.Boot, record *policy.Record, others ...policy.Boot) (*policy.Sealed, error) {
	if _, err := b.TPM.StorageKey(); err != nil {
		return nil, err
	}
	if err := b.Clear(); err != nil {
		b.Say("what an earlier start left in the TPM was not cleared: %v", err)
	}
	sealed, err := b.sealIndex(secret, record)
	if errors.Is(err, tpm.ErrNoSpace) && b.room != nil {
		if err = b.room(); err == nil {
			sealed, err = b.sealIndex(secret, record)
		}
	}
	if err == nil {
		return sealed, nil
	}
	bound := b.Needed != nil && b.Needed.Kind == policy.KindNV // one of two: this secret is not bound to less
	if bound || !errors.Is(err, tpm.ErrNoSpace) && !errors.Is(err, tpm.ErrUnsupported) {
		return nil, err
	}
	if weaker := b.consent(record, secret.PIN() != nil, policy.KindPCR); weaker != nil {
		return nil, fmt.Errorf("this TPM cannot hold the policy record (%w): %w", err, weaker)
	}
	b.Say("WARNING: this TPM cannot hold the policy record (%v): the secret is bound to this one system, an update binds it again, and an older copy of it is not shut out", err)
	pcrs := record.PCRs()
	if record.Programs { // a change of the boot manager would mean sealing again
		pcrs = policy.WithoutPrograms()
	}
	boots := append([]policy.Boot{boot}, others...)
	if record.Provisional() {
		return b.sealForNow(secret, pcrs, boots)
	}
	return b.TPM.SealPCR(secret, pcrs, boots...)
}

// provisionalStarts is how many starts after its first a machine without a record has
// to be finished. Between the first boot and the second there is one, and cuts can make
// it more.
const provisionalStarts = 32

// sealForNow seals what the first boot leaves on the ESP, where no index that can be
// deleted ends what it is worth: it holds this machine's Secure Boot keys, and is bound
// to no firmware setting. A TPM that cannot count its resets seals it for ever.
func (b Binding) sealForNow(secret *policy.Secret, pcrs []int, boots []policy.Boot) (*policy.Sealed, error) {
	sealed, err := b.TPM.SealPCRFor(provisionalStarts, secret, pcrs, boots...)
	if err == nil && b.Proves {
		var again *policy.Secret
		if again, _, err = b.TPM.UnsealBy(sealed, secret.PIN()); err == nil {
			again.Wipe()
		}
	}
	if err == nil {
		return sealed, nil
	}
	b.Say("WARNING: this TPM does not count its starts (%v): anyone who keeps a copy of what lies on the ESP until the next start can learn this machine's Secure Boot keys from it, for ever", err)
	return b.TPM.SealPCR(secret, pcrs, boots...)
}

// SealBetween seals what stands in for an NV index while that makes room for another: to
// this start of the machine, by PCR 7 as well, which holds by then what the machine is to
// be accepted with, and for as many starts as the first boot's object is worth elsewhere.
func (b Binding) SealBetween(secret *policy.Secret, boot policy.Boot) (*policy.Sealed, error) {
	return b.sealForNow(secret, policy.WithoutPrograms(), []policy.Boot{boot})
}

// Clear deletes the NV indexes that a provisioning left when it was cut before
// anything depended on them: a TPM has room for a few only.
func (b Binding) Clear() error {
	left, err := b.TPM.Abandoned()
	for _, index := range left {
		if b.Needed != nil && b.Needed.Kind == policy.KindNV && index.Handle == b.Needed.NVIndex {
			continue
		}
		err = errors.Join(err, b.TPM.Undefine(index.Handle))
	}
	return err
}

// sealIndex defines the index, writes the record, seals, and unseals once to see
// that this TPM does what was computed.
func (b Binding) sealIndex(secret *policy.Secret, record *policy.Record) (*policy.Sealed, error) {
	key, err := secret.WriteKey()
	if err != nil {
		return nil, err
	}
	index, err := b.TPM.Define(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := b.TPM.WriteRecord(index.Handle, key, record); err != nil {
		return nil, err
	}
	sealed, err := b.TPM.Seal(secret, index)
	if err != nil || !b.Proves {
		return sealed, err
	}
	again, _, err := b.TPM.UnsealBy(sealed, secret.PIN())
	if err != nil {
		return nil, fmt.Errorf("what was sealed just now does not unseal: %w", err)
	}
	defer again.Wipe()
	if !again.Equal(secret) {
		return nil, errors.New("what was sealed just now unseals to something else")
	}
	return sealed, nil
}

// WriteRecord replaces the record of the index that an object is sealed to.
func (b Binding) WriteRecord(secret *policy.Secret, sealed *policy.Sealed, r *policy.Record) error {
	key, err := secret.WriteKey()
	if err != nil {
		return err
	}
	return b.TPM.WriteRecord(sealed.NVIndex, key, r)
}

// ErrReplaced refuses to accept a system below the floor.
var ErrReplaced = errors.New("it was replaced for good")

// Accept writes the record where its index is still there, and reports whether
// it was. The floor stays as it is: it rises when a release has proven itself,
// and no other time. What would be less than the machine had is asked for first.
func (b Binding) Accept(lock *rootlock.Lock, secret *policy.Secret, record *policy.Record) (bool, error) {
	b, there, err := b.succeed(lock, secret, record)
	if err != nil || !there {
		return false, err
	}
	// The object stays as it is, and asks for the PIN that it did, known here or not.
	if err := b.consent(record, lock.HasPIN(), policy.KindNV); err != nil {
		return false, err
	}
	return true, b.WriteRecord(secret, lock.Sealed, record)
}

// OpensByTPM has the keyslot that the TPM's token names open with the secret, where it
// does not: it is damaged, or the token was changed to name another. The TPM releases the
// secret then, and the record alone would not end the question for the recovery key. Cut
// before the header is written, the owner is asked once more. Where the PIN is not known it
// does nothing: nobody can tell whether the keyslot opens.
func OpensByTPM(random io.Reader, d block.Device, lock *rootlock.Lock, volumeKey []byte, secret *policy.Secret) error {
	if lock.HasPIN() && secret.PIN() == nil {
		return nil
	}
	opened, err := lock.OpenTPM(d, secret, 0) // the keyslot of a machine secret takes no memory
	luks2.Wipe(opened)
	if err == nil {
		return nil
	}
	return lock.Rebind(random, d, volumeKey, secret, lock.Sealed, nil)
}

// succeed gives a record the floor that was, and reports whether the TPM has the index
// of the one before, which it must not replace with less. What that one had counts as
// what the machine had.
func (b Binding) succeed(lock *rootlock.Lock, secret *policy.Secret, record *policy.Record) (had Binding, there bool, err error) {
	old, err := b.ownRecord(lock, secret)
	switch {
	case err == nil:
		if err := b.keepFloor(record, old.Floor); err != nil {
			return b, false, err
		}
		if err := record.Succeeds(old); err != nil {
			return b, false, err
		}
		record.Manager = max(record.Manager, old.Manager)
		b.Had = b.Had.Raise(Of(old, b.Had.SecureBoot)) // the note can be gone, or an older one
		if old.Programs && b.Seen != nil && !b.Seen(old) {
			b.Older = append(slices.Clone(b.Older), words.Fixed(words.LostUnseen))
		}
		return b, true, nil
	case !errors.Is(err, policy.ErrRecord): // anything but a write that was torn
		return b, false, nil
	}
	b.Had = b.Had.Forgotten()
	return b, true, b.keepFloor(record, 0)
}

// ownRecord reads the record of the index that the header names, if that is one that
// this machine secret alone can write: anybody can define one of their own, with a
// record of their own, and put its name into the header.
func (b Binding) ownRecord(lock *rootlock.Lock, secret *policy.Secret) (*policy.Record, error) {
	if lock.Sealed == nil || lock.Sealed.Kind != policy.KindNV {
		return nil, tpm.ErrIndexMissing
	}
	key, err := secret.WriteKey()
	if err != nil {
		return nil, err
	}
	name, err := policy.Index{Handle: lock.Sealed.NVIndex, Key: &key.PublicKey}.Name()
	if err != nil {
		return nil, err
	}
	if name != *lock.Sealed.NVName {
		return nil, tpm.ErrIndexForeign
	}
	return b.TPM.ReadRecord(lock.Sealed)
}

// Admits reports whether the TPM releases the secret to a boot, by what only this machine
// can have written.
func (b Binding) Admits(lock *rootlock.Lock, secret *policy.Secret, boot policy.Boot) bool {
	if lock.Sealed != nil && lock.Sealed.Kind == policy.KindPCR {
		d, err := boot.BranchOver(lock.Sealed.PCRs)
		return err == nil && slices.Contains(lock.Sealed.Branches, d)
	}
	record, err := b.ownRecord(lock, secret)
	return err == nil && record.Allows(&boot)
}

// MaySucceed gives a record that is for another index the floor that was. What would be
// less than the machine had is asked for.
func (b Binding) MaySucceed(lock *rootlock.Lock, secret *policy.Secret, record *policy.Record) error {
	b, there, err := b.succeed(lock, secret, record)
	if err == nil && !there {
		b.Had = b.Had.Forgotten()
		err = b.keepFloor(record, 0)
	}
	if err != nil {
		return err
	}
	return b.consent(record, secret.PIN() != nil, policy.KindNV)
}

// keepFloor gives a record the floor that was: the TPM's or the root partition's,
// whichever is higher. Nobody is asked to give it up: who deletes the TPM's index
// would otherwise bring an old system back.
func (b Binding) keepFloor(record *policy.Record, tpms uint64) error {
	floor := max(tpms, b.Had.Floor)
	if record.Floor < floor {
		return fmt.Errorf("this system's epoch is %d and the floor is %d: %w", record.Floor, floor, ErrReplaced)
	}
	if floor > 0 {
		record.Floor = floor
	}
	return nil
}

// A Rebinding is what another TPM is told, or one that was cleared. The secrets stay the caller's.
type Rebinding struct {
	VolumeKey []byte
	Secret    *policy.Secret
	Keys      *secureboot.KeySet // sign the owner signature; nil where the machine has none
	Record    *policy.Record
	// Boots may unlock, and the first of them is the running one.
	Boots []policy.Boot
}

// Rebind seals the secret to a TPM that does not know it, and has the header say
// so. Cut before the header
// is written, the TPM keeps an index that nothing names.
//
// What the TPM has lost it does not vouch for: the owner of a machine that had a record
// is asked, whatever the note on the root partition says. An index of this volume that
// is still there, although the header did not lead to it, goes before the header is
// written: put back later, a header that names it would open by its old record. Cut in
// between, the owner is asked again.
//
// A TPM with room for one index has none where such an index is left, as by a cut between
// the new one and the header. Then it goes first, where the header leads to none, or to
// one of a TPM that was cleared or exchanged: nothing is lost by it, and a cut after it
// leaves a TPM with room.
func (b Binding) Rebind(random io.Reader, d block.Device, lock *rootlock.Lock, r Rebinding) error {
	if err := b.keepFloor(r.Record, 0); err != nil {
		return err
	}
	b.Had = b.Had.Forgotten()
	if err := b.consent(r.Record, r.Secret.PIN() != nil, policy.KindNV); err != nil {
		return err
	}
	b.Had.unknown = nil // that was agreed to
	fingerprint := policy.VolumeFingerprint(r.VolumeKey)
	_, err := b.ownRecord(lock, r.Secret)
	if errors.Is(err, tpm.ErrIndexMissing) || errors.Is(err, tpm.ErrIndexForeign) || errors.Is(err, tpm.ErrChanged) {
		b.room = func() error { return DropIndexes(b.TPM, fingerprint, b.Needed) }
	}
	sealed, err := b.Seal(r.Secret, r.Boots[0], r.Record, r.Boots[1:]...)
	if err != nil {
		return err
	}
	var ownerKey *rsa.PrivateKey // while the keys are replaced the owner signatures by both stay
	if r.Keys != nil && len(lock.NextOwnerSignature) == 0 {
		ownerKey = r.Keys.DB.Key
	}
	if err := DropIndexes(b.TPM, fingerprint, sealed); err != nil {
		return fmt.Errorf("clear what the TPM had of this volume: %w", err)
	}
	b.CarryPhrase(random, lock, r.Secret, r.Secret, sealed)
	return lock.Rebind(random, d, r.VolumeKey, r.Secret, sealed, ownerKey)
}
