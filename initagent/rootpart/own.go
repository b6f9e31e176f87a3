package rootpart

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
)

// storedKeys reads the wrapped Secure Boot keys. ListFile has the keys and the
// list; KeysFile, of an earlier release, the same keys alone. That one stays: the
// system in the other slot may be of that release and know no other, and it holds
// nothing that ListFile does not. Where both are there ListFile counts, unless it
// is damaged, which is as good as not being there: anyone who can damage it can
// remove it.
func storedKeys(store hw.Store, secret *policy.Secret) ([]byte, error) {
	wrapped, err := store.Read(ListFile, int64(secureboot.MaxWrappedList))
	if err == nil {
		if _, damaged := firstboot.UnwrapList(secret, wrapped); damaged == nil {
			return wrapped, nil
		}
	}
	old, olderr := store.Read(KeysFile, int64(secureboot.MaxWrapped))
	if errors.Is(olderr, fs.ErrNotExist) {
		return wrapped, err // of which the keys may be good
	}
	return old, olderr
}

// HasKeys reports whether the open root partition has Secure Boot keys, whatever they are
// worth.
func HasKeys(store hw.Store) bool {
	_, list := store.Read(ListFile, 0)
	_, keys := store.Read(KeysFile, 0)
	return !errors.Is(list, fs.ErrNotExist) || !errors.Is(keys, fs.ErrNotExist)
}

// StoredKeys are this machine's Secure Boot keys, from the open root partition;
// nil where it has none. The caller wipes them. lock is what has opened it: the keys
// count where their db key has made the owner signature of the volume (see vouched).
func StoredKeys(store hw.Store, secret *policy.Secret, lock *rootlock.Lock) (*secureboot.KeySet, error) {
	wrapped, err := storedKeys(store, secret)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := firstboot.UnwrapKeys(secret, wrapped)
	if err != nil {
		return nil, fmt.Errorf("%w: "+otherHeader, err)
	}
	if err := vouched(store, secret, lock, keys.DB.Certificate); err != nil {
		keys.Wipe()
		return nil, err
	}
	return keys, nil
}

// otherHeader is why the keys may not open, and what to do: an older header has the machine
// secret of its time, and no cure brings the newer one back but the newer header.
const otherHeader = "either the root partition's LUKS2 header is an older one, put back after a new machine secret was made, or the file with the Secure Boot keys is damaged. " +
	"If you have a newer copy of the header, put that back. Otherwise save what is on the root partition (`unlock` opens it), and `reset` makes the machine new, with keys that the firmware can enforce"

// StoredList is the list that belongs to the keys, from the open root partition:
// a bare one where an earlier release has stored the keys, and nil where there
// are none. It counts as the keys do.
//
// While the keys are replaced it is the one of those that come: what the firmware holds
// meanwhile is InForce's to say.
func StoredList(store hw.Store, secret *policy.Secret, lock *rootlock.Lock) (*secureboot.List, error) {
	wrapped, err := storedKeys(store, secret)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := firstboot.UnwrapList(secret, wrapped)
	if err != nil {
		return nil, err
	}
	own, err := list.DBCertificate()
	if err == nil {
		err = vouched(store, secret, lock, own)
	}
	if err != nil {
		return nil, err
	}
	return list, nil
}

// errNotOwner refuses keys that this machine has had, and has no more. The machine
// secret does not tell: root of the running system can put an older file back that was
// written under it.
var errNotOwner = fmt.Errorf("the Secure Boot keys in %s are not those of this volume's owner signature: older ones were put back there, or the LUKS2 header is another. They are not used. "+
	"The machine starts as before, and the recovery key opens your data. If no backup of that file helps: save your data, and `reset` the machine", ListFile)

// vouched refuses keys whose db certificate has made neither owner signature of the volume. Only a
// volume that is bound to a TPM has one; that it is not bound any more does not count
// where the machine's own note says that it was.
func vouched(store hw.Store, secret *policy.Secret, lock *rootlock.Lock, db *x509.Certificate) error {
	if lock == nil || lock.Sealed == nil && lock.Strange == nil {
		if g := ReadGuarantees(store, secret); g.unknown == nil && g.Record {
			return errNotOwner
		}
		return nil
	}
	if owned, next := lock.Signed(db); !owned && !next {
		return errNotOwner
	}
	return nil
}

// OwnList is InForce for anyone who judges by it, and StoredList without a firmware's state.
// Where the list is damaged and the keys are good it is a bare one as well, and damaged
// says why: anyone who can damage a list could not have made one, and a bare list wants
// nothing of others in the firmware. While keys are replaced that is so in Setup Mode alone,
// in which the firmware has none of either and gets the new ones.
func OwnList(store hw.Store, secret *policy.Secret, lock *rootlock.Lock, s *enroll.State) (list *secureboot.List, damaged, err error) {
	if s != nil {
		list, damaged = InForce(store, secret, lock, *s)
	} else {
		list, damaged = StoredList(store, secret, lock)
	}
	if damaged == nil {
		return list, nil, nil
	}
	if s != nil && s.SetupMode == enroll.Off && KeysUnfinished(store, lock) {
		return nil, nil, damaged
	}
	keys, err := StoredKeys(store, secret, lock)
	if err != nil || keys == nil {
		return nil, nil, damaged
	}
	defer keys.Wipe()
	return secureboot.BareList(keys), damaged, nil
}

// KeepKeys puts wrapped keys with their list on the root partition, in place of
// those that are there. It is one write, of which a cut leaves the old file or the
// new one.
func KeepKeys(store hw.Store, wrapped []byte) error {
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.Keep(ListFile, wrapped)
}

// KeepList stores a list with the keys that are there. Cut before its one write has
// returned, the old list stands, or, where an earlier release has stored the keys,
// none.
func KeepList(store hw.Store, random io.Reader, secret *policy.Secret, list *secureboot.List) error {
	wrapped, err := storedKeys(store, secret)
	if err != nil {
		return err
	}
	if wrapped, err = firstboot.WrapList(random, secret, wrapped, list); err != nil {
		return err
	}
	list.Bare = false
	return KeepKeys(store, wrapped)
}

// Enrollable is the list by which the firmware gets this machine's keys: the one
// that is stored, or, where none is, what the image's contract, the event log and
// the firmware's defaults come to. What the firmware's variables hold now says
// nothing: in Setup Mode anybody can have written it.
func Enrollable(stored *secureboot.List, keys *secureboot.KeySet, mode contract.VendorKeys, drivers secureboot.Drivers, s enroll.State) (l *secureboot.List, reason string, err error) {
	if stored != nil && !stored.Bare {
		return stored, "as this machine has stored it", nil
	}
	vendor, err := secureboot.VendorCertificates(mode, keys.Owner, drivers, s.Factory)
	if err != nil {
		return nil, "", err
	}
	return secureboot.NewList(keys, vendor), vendor.Reason, nil
}

// NewROMs are the option ROMs that were started and that a list does not let start.
// A list with certificates of others has been made for a machine whose ROMs they let
// start: of that nothing is known. What the owner has let in is there for other systems.
func NewROMs(list *secureboot.List, drivers secureboot.Drivers) (out []secureboot.OptionROM) {
	vendors := func(e secureboot.Entry) bool {
		from := list.Origin(e)
		return secureboot.StartsROMs(e) && from != "" && from != secureboot.FromOwner
	}
	if slices.ContainsFunc(list.Wanted.DB, vendors) {
		return nil
	}
	for _, rom := range drivers.ROMs {
		if rom.Digest != [32]byte{} && !list.Wanted.DB.Contains(secureboot.Hash(list.Owner, rom.Digest)) {
			out = append(out, rom)
		}
	}
	return out
}

// AskROMs has the owner decide about each option ROM that a stored list does not
// let start, such as that of a new graphics card, and reports whether the list has
// changed.
func AskROMs(l words.Language, list *secureboot.List, drivers secureboot.Drivers, ask func(question string) (bool, error)) (changed bool, err error) {
	if list.Bare {
		return false, nil // the list is made now, with the ROMs that are there
	}
	for _, rom := range NewROMs(list, drivers) {
		yes, err := ask(l.Say(words.LetROM, secureboot.Printable(rom.Path), rom.Digest))
		if err != nil {
			return changed, err
		}
		changed = yes && list.Add(secureboot.DB, secureboot.Hash(list.Owner, rom.Digest), secureboot.FromOwner) || changed
	}
	return changed, nil
}

// Allowed lets the db key sign the images of a list alone.
func Allowed(list *secureboot.List) enroll.Allowed {
	return func(_ string, image []byte) error {
		digest, err := authenticode.Digest(image)
		if err != nil {
			return err
		}
		if !list.Allows(digest) {
			return fmt.Errorf("it is not one of this machine's own (hash %x)", digest)
		}
		return nil
	}
}

// AllowedAnew is Allowed for a new db key. What another image has replaced is not signed
// by it: it would start again wherever dbx has no room for it, or the firmware does not
// take it.
func AllowedAnew(list *secureboot.List) enroll.Allowed {
	allowed := Allowed(list)
	return func(name string, image []byte) error {
		if err := allowed(name, image); err != nil {
			return err
		}
		if digest, err := authenticode.Digest(image); err != nil || list.Replaced(digest) {
			return errors.Join(fmt.Errorf("another has taken its place (hash %x)", digest), err)
		}
		return nil
	}
}

// MayAccept refuses to accept a machine whose firmware starts anything, and one
// whose firmware holds what this machine does not want there: PCR 7 is then what
// the program of the one who put it there finds, too. list is nil where no keys are
// stored, which is right only where the machine was made without any.
func MayAccept(s enroll.State, wanted contract.Requirement, lock *rootlock.Lock, list *secureboot.List) error {
	if errors.Is(lock.Strange, policy.ErrNewer) {
		return fmt.Errorf("a later release has bound the root partition to the TPM, in a way that this one does not know, and would undo it: start that one (%w)", lock.Strange)
	}
	if wanted == contract.Required && !Enforces(s) {
		return errors.New("the firmware does not enforce Secure Boot, so whatever it started could open the root partition from then on: switch Secure Boot on in the firmware's setup, or, where its keys are gone, `enroll` at the recovery console, and start again")
	}
	if list == nil && (wanted == contract.Required || len(lock.OwnerSignature) > 0) {
		return errors.New("this machine's Secure Boot keys are missing from the root partition, so what its firmware shall hold is not known: save what is on it, and `reset` the machine")
	}
	if list == nil || !Enforces(s) {
		return nil
	}
	if foreign := enroll.Foreign(s, list); foreign != "" {
		return fmt.Errorf("the firmware's keys are not those that this machine wants: %s. Anyone who put them there could open the root partition from then on. "+
			"If that was not you, do not trust this machine. The way out: clear the Secure Boot keys in the firmware's setup (Setup Mode), start again, type the recovery key, and give the firmware this machine's own keys again", foreign)
	}
	return nil
}

// ListEnforced reports whether the firmware enforces Secure Boot, and starts what
// this machine's own key has signed.
func ListEnforced(s enroll.State, list *secureboot.List) bool {
	own, err := list.DBCertificate()
	return err == nil && Enforces(s) && slices.ContainsFunc(Certificates(s), own.Equal)
}

// CheckOwn reports why an image does not count as this machine's own, as one that
// its firmware starts: the list does not have it, this machine's key has not signed
// it, the firmware's db lacks that key, or dbx has the image or the key. A bare list
// has no images, and all that the key has signed counts.
func CheckOwn(image []byte, s enroll.State, list *secureboot.List) error {
	own, err := list.DBCertificate()
	if err != nil {
		return err
	}
	if err := authenticode.VerifyOwn(image, own); err != nil {
		return err
	}
	if !slices.ContainsFunc(Certificates(s), own.Equal) {
		return errors.New("the firmware's db does not hold this machine's key")
	}
	if err := checkRevoked(image, own, s.DBX.Content); err != nil || list.Bare {
		return err
	}
	return Allowed(list)("", image)
}

// checkRevoked reports that dbx has an image or its signer.
func checkRevoked(image []byte, signer *x509.Certificate, dbx secureboot.Database) error {
	digest, err := authenticode.Digest(image)
	if err != nil {
		return err
	}
	for _, e := range dbx {
		switch {
		case e.Type == secureboot.TypeSHA256 && slices.Equal(e.Data, digest[:]):
			return fmt.Errorf("its hash %x is in the firmware's dbx", digest)
		case e.Type == secureboot.TypeX509 && slices.Equal(e.Data, signer.Raw):
			return fmt.Errorf("its signer %q is in the firmware's dbx", signer.Subject)
		}
	}
	return nil
}
