package rootpart

import (
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// A new machine secret replaces the old one, and all that was made from it.
//
// The order: NextFile has the Secure Boot keys with their list, and the guarantees,
// under the new secret; the TPM gets a new index, with the whole record, and the sealed
// secret; one header (rootlock.Lock.ReplaceSecret) puts the new secret in force, for the
// TPM and for the recovery key alike. What is left is FinishSecret's, here or at the
// next boot, no matter who opens it: the files go to their places, the old secret's keyslot
// and index are removed, and NextFile goes last. Where the Secure Boot keys are replaced as
// well, NextFile's list has the new ones, and the same header has both sign the volume (see
// newkeys.go).
//
// Cut before that header, the old secret is in force, and all its files are in place:
// FinishSecret takes the new index and NextFile away again. Cut after it, the new one
// is, and what it needs is in NextFile or in place. Which of both is so NextFile itself
// says: it opens by the new secret alone.

const (
	nextFormat  = 1
	nextPurpose = "next-secret"
	maxNext     = 2*(int64(secureboot.MaxWrappedList)+maxGuarantees+maxNextKeys) + 4<<10 // in base64, in JSON
)

// next is what NextFile's box holds: files as they will be.
type next struct {
	Format     int    `json:"format"`
	List       []byte `json:"list"` // ListFile; empty where the machine has no keys
	Guarantees []byte `json:"guarantees"`
	// Superseded is NextKeysFile, where the Secure Boot keys are replaced as well: List
	// has the new ones then.
	Superseded []byte `json:"superseded,omitempty"`
}

func openNext(secret *policy.Secret, box []byte) (*next, error) {
	text, err := secret.Unbox(nextPurpose, box)
	if err != nil {
		return nil, err
	}
	n := new(next)
	if err := json.Unmarshal(text, n); err != nil {
		return nil, err
	}
	if n.Format != nextFormat {
		return nil, fmt.Errorf("format %d, want %d", n.Format, nextFormat)
	}
	return n, nil
}

// A Replacement is what replaces a machine secret: Old by Fresh, which the recovery key
// Key keeps as well. With Keys the Secure Boot keys are replaced, too; nil leaves them. All
// of it stays the caller's.
type Replacement struct {
	Old, Fresh *policy.Secret
	Key        *luks2.RecoveryKey
	Keys       *NewKeys
	// OtherPIN: the fresh secret goes along with the PIN that it has, or with none.
	// Otherwise it gets that of the old one.
	OtherPIN bool
}

// Prepare writes NextFile. What the old secret has is read first.
func (r *Replacement) Prepare(store hw.Store, random io.Reader, lock *rootlock.Lock, g Guarantees) error {
	n := next{Format: nextFormat}
	var err error
	if n.List, err = r.list(store, random, lock); err != nil {
		return err
	}
	if r.Keys != nil {
		if n.Superseded, err = r.Keys.note(random, r.Fresh); err != nil {
			return err
		}
	}
	if n.Guarantees, err = g.box(random, r.Fresh); err != nil {
		return err
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	box, err := r.Fresh.Box(random, nextPurpose, text)
	if err != nil {
		return err
	}
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.Keep(NextFile, box)
}

// list is ListFile under the fresh secret; nil where the machine has no keys. Keys that
// give way are in none that the fresh secret opens.
func (r *Replacement) list(store hw.Store, random io.Reader, lock *rootlock.Lock) ([]byte, error) {
	if r.Keys != nil {
		return firstboot.WrapKeys(random, r.Fresh, r.Keys.fresh, r.Keys.next)
	}
	keys, err := StoredKeys(store, r.Old, lock)
	if keys == nil || err != nil {
		return nil, err
	}
	defer keys.Wipe()
	list, err := StoredList(store, r.Old, lock)
	if err != nil {
		return nil, err
	}
	if list.Bare {
		return nil, errBareList
	}
	return firstboot.WrapKeys(random, r.Fresh, keys, list)
}

var errBareList = errors.New("the list of what the firmware shall hold was not made yet: `reseal` alone, and start once so that the machine opens by itself")

// A Volume is the machine's root partition, with the key of its volume, which stays the caller's.
type Volume struct {
	Machine hw.Machine
	Disk    hw.Disk
	Random  io.Reader
	Lock    *rootlock.Lock
	Key     []byte
}

// ReplaceSecret has the TPM and the header be for a new secret, up to where FinishSecret
// goes on. It returns what the machine has from then on. Where it fails, changed says that
// the header may be for either secret: it tells which, and nothing may be written by
// either before it was read again.
//
// The record is the new secret's, in an index of its own: up to the header the old one's
// stands, whole, and FinishSecret deletes the one that the header does not name. What the
// machine has goes by what the new secret was in fact sealed to, which can be more than
// the old one was: NextFile is written again then, before the header.
func (b Binding) ReplaceSecret(v Volume, r *Replacement, record *policy.Record, boots []policy.Boot) (g Guarantees, changed bool, err error) {
	owner, next, wipe, err := r.ownerKeys(v.Machine.Store, v.Lock)
	if err != nil {
		return g, false, err
	}
	defer wipe()
	if !r.OtherPIN {
		r.Fresh.SetPIN(r.Old.PIN())
	}
	if r.OtherPIN { // its owner wants it so
		b.Had.PIN = r.Fresh.PIN() != nil
	}
	g = b.Now(record, v.Lock)
	// From the first on: whatever is under the fresh secret can be found in free space, and
	// put back.
	g.PIN = r.Fresh.PIN() != nil
	if err := r.Prepare(v.Machine.Store, v.Random, v.Lock, g); err != nil {
		return g, false, err
	}
	b.Consent = nil // a TPM without room for a second record keeps the one that it has
	sealed, err := b.Seal(r.Fresh, boots[0], record, boots[1:]...)
	if err == nil {
		if now := b.NowSealed(record, sealed); now != g {
			g, err = now, r.Prepare(v.Machine.Store, v.Random, v.Lock, now)
		}
	}
	if errors.Is(err, tpm.ErrNoSpace) {
		err = fmt.Errorf("this TPM has no room for the record of a new secret beside the one in force: free some of it (tpm2_nvundefine, for what other software has put there and nobody needs), and ask again: %w", err)
	}
	if err != nil {
		return g, false, errors.Join(err, FinishSecret(v, b.TPM, r.Old))
	}
	f, err := v.Machine.Disks.OpenPartition(v.Disk, layout.Root, true)
	if err != nil {
		return g, false, errors.Join(err, FinishSecret(v, b.TPM, r.Old))
	}
	b.CarryPhrase(v.Random, v.Lock, r.Old, r.Fresh, sealed)
	return g, true, errors.Join(v.Lock.ReplaceSecret(v.Random, f, v.Key, rootlock.NewSecret{Secret: r.Fresh, Sealed: sealed, Recovery: r.Key, Owner: owner, Next: next}), f.Close())
}

// ownerKeys sign the owner signature: that of the keys that are there, nil without, and that of the
// ones that are about to replace them, nil where none are. wipe is called after them.
func (r *Replacement) ownerKeys(store hw.Store, lock *rootlock.Lock) (owner, next *rsa.PrivateKey, wipe func(), err error) {
	if r.Keys != nil {
		return r.Keys.old.DB.Key, r.Keys.fresh.DB.Key, func() {}, nil
	}
	keys, err := StoredKeys(store, r.Old, lock)
	if keys == nil || err != nil {
		return nil, nil, func() {}, err
	}
	return keys.DB.Key, nil, keys.Wipe, nil
}

// place puts the files in place, where what is there is the old secret's. What the new
// one has written since stays. The superseded keys come before the list, which says that
// both are there.
func (n *next) place(store hw.Store, secret *policy.Secret) error {
	list, err := look(store, ListFile, int64(secureboot.MaxWrappedList), unwraps(secret))
	if err == nil && len(n.List) > 0 && list != good {
		if len(n.Superseded) > 0 {
			err = store.Keep(NextKeysFile, n.Superseded)
		}
		if err == nil {
			err = KeepKeys(store, n.List)
		}
	}
	if err != nil {
		return err
	}
	guarantees, err := look(store, GuaranteesFile, maxGuarantees, unboxes(secret))
	if err == nil && guarantees != good {
		err = store.Keep(GuaranteesFile, n.Guarantees)
	}
	if err != nil {
		return err
	}
	return store.Remove(KeysFile) // nothing opens it any more
}

func unwraps(secret *policy.Secret) func([]byte) error {
	return func(text []byte) error {
		_, err := firstboot.UnwrapList(secret, text)
		return err
	}
}

func unboxes(secret *policy.Secret) func([]byte) error {
	return func(text []byte) error {
		_, err := secret.Unbox(guaranteesPurpose, text)
		return err
	}
}

// What a file in place may be.
const (
	absent = iota
	closed // under another secret, or damaged
	good
)

// look says what a file is; an error that it cannot be read now.
func look(store hw.Store, name string, limit int64, open func([]byte) error) (int, error) {
	text, err := store.Read(name, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent, nil
	case errors.Is(err, hw.ErrUnfit):
		return closed, nil
	case err != nil:
		return 0, err
	case open(text) != nil:
		return closed, nil
	}
	return good, nil
}

// errNeither keeps what may be the only copy of this machine's keys.
var errNeither = fmt.Errorf("neither %s nor %s opens by the machine secret: one of them is damaged, and both are left as they are", ListFile, NextFile)

// SecretUnfinished reports whether there is anything for FinishSecret to do.
func SecretUnfinished(store hw.Store, lock *rootlock.Lock) bool {
	_, err := store.Read(NextFile, 0)
	return lock.Replaced || !errors.Is(err, fs.ErrNotExist)
}

// FinishSecret finishes the replacement of the machine secret that a cut has left
// undone, or takes it back. secret is the one that is in force: the header has it. chip
// is nil where there is no TPM: then NextFile stays until there is one. Each step may
// be made again.
func FinishSecret(v Volume, chip *tpm.TPM, secret *policy.Secret) error {
	store, lock := v.Machine.Store, v.Lock
	if !SecretUnfinished(store, lock) {
		return nil
	}
	box, err := store.Read(NextFile, maxNext)
	switch {
	case err == nil:
		err = takeNext(store, secret, box)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, hw.ErrUnfit): // the running system can put anything there
		err = nil
	}
	if err == nil && lock.Replaced {
		err = removeReplaced(v.Machine.Disks, v.Disk, v.Random, lock)
	}
	// What a token that is not understood is bound to may be what a later release goes by.
	if err != nil || chip == nil || lock.Strange != nil {
		return err
	}
	if err := DropIndexes(chip, policy.VolumeFingerprint(v.Key), lock.Sealed); err != nil {
		return err
	}
	return store.Remove(NextFile)
}

// takeNext puts in place what NextFile holds. One that another secret has written
// never came into force, and the files in place count.
func takeNext(store hw.Store, secret *policy.Secret, box []byte) error {
	n, err := openNext(secret, box)
	if err == nil {
		return n.place(store, secret)
	}
	list, err := look(store, ListFile, int64(secureboot.MaxWrappedList), unwraps(secret))
	if err == nil && list == closed {
		err = errNeither
	}
	return err
}

func removeReplaced(disks hw.Disks, d hw.Disk, random io.Reader, lock *rootlock.Lock) error {
	f, err := disks.OpenPartition(d, layout.Root, true)
	if err != nil {
		return err
	}
	return errors.Join(lock.RemoveReplaced(random, f), f.Close())
}

// DropIndexes deletes the TPM's indexes of a volume but the one that its header names,
// and those that were never written.
func DropIndexes(chip *tpm.TPM, fingerprint [32]byte, sealed *policy.Sealed) error {
	left, err := chip.OfVolume(fingerprint)
	never, nerr := chip.Abandoned()
	err = errors.Join(err, nerr)
	for _, index := range append(left, never...) {
		if sealed != nil && sealed.Kind == policy.KindNV && sealed.NVIndex == index.Handle {
			continue
		}
		err = errors.Join(err, chip.Undefine(index.Handle))
	}
	return err
}

// What contract.Abilities.NewSecret says of a system that finishes the replacement of a
// secret, and of one that finishes that of the Secure Boot keys as well. One that says 2
// did, in a form in which the old keys could come back.
const (
	finishesSecret = 1
	finishesKeys   = 3
	// KnowsPIN is a system that opens a machine with a PIN.
	KnowsPIN = 4
)

// A Change is what a new machine secret brings about.
type Change struct {
	Keys bool // new Secure Boot keys
	PIN  bool // a first PIN, or another one
}

// CheckSystems reports which system of the ESP, besides the running one, may be
// started, and could neither finish the replacement of a secret, or of the Secure Boot
// keys, nor, where it is of the time before the list, read this machine's keys after it.
func CheckSystems(files fs.FS, running *contract.Contract, table *gpt.Table, change Change) error {
	need, what := finishesSecret, "a new machine secret"
	switch {
	case change.PIN:
		need, what = KnowsPIN, "PINs"
	case change.Keys:
		need, what = finishesKeys, "new Secure Boot keys"
	}
	entries, err := fs.ReadDir(files, bls.Directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, err := bls.Parse(e.Name())
		if err != nil || n.ImageID != running.ImageID || n.Version == running.Version || n.Bad() {
			continue
		}
		image, err := ReadUKI(files, n)
		if err != nil {
			return err
		}
		im, err := ReadImage(image)
		if err != nil {
			return fmt.Errorf("%s, which may be started: %w", n, err)
		}
		root := im.Contract.Root()
		if s, named := layout.FindSlot(table, layout.SystemUUID(root), layout.VerityUUID(root)); !s.Valid() || !named {
			continue // it cannot run
		}
		if im.Abilities.NewSecret < need {
			return fmt.Errorf("version %d may still be started, and is of a release that knows nothing of %s: install one more update, so that it is replaced", n.Version, what)
		}
	}
	return nil
}
