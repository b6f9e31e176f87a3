package rootpart

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
)

// New Secure Boot keys replace the old ones, in firmware that enforces those. They come
// with a new machine secret, and never without one.
//
// The order: the TPM's record gets what PCR 7 will be after each write to the firmware;
// ListFile has the new keys from the instant on at which the new secret is in force, and
// NextKeysFile the old ones, as superseded: they sign what the firmware still takes from
// them, and that is all they are good for. So no file under the new secret makes the old
// keys count, and anyone who finds one of the old secret's in free space has nothing. The
// same header has the owner signature of both. Then each file that the machine starts is
// signed by the new key besides the old one, and the firmware's variables get the new
// keys (enroll.Successor). The next boot that finds all of them enforced settles it: the
// owner signature by the old key goes, and what PCR 7 was, and NextKeysFile last.
//
// Cut before the new secret is in force, nothing of this is (see newsecret.go). Cut after
// it, Finish goes on, here or at the next boot: every step is skipped where it was done.
// Before each write to the firmware, and after the last one, the record is written for
// what the firmware then really holds.
//
// Where the firmware has taken nothing and does not go on, the old keys get their place
// back (goBack). From PK on only the new keys can go on; until they have, the old db key
// starts this machine, and the owner is told.

const (
	nextKeysFormat  = 2
	nextKeysPurpose = "next-keys"
	oldKeysPurpose  = "superseded-keys"
	maxNextKeys     = 2*int64(secureboot.MaxWrapped) + 4<<10 // in base64, in JSON
	// maxForgotten is how many times the firmware may forget what it has taken: it would
	// otherwise restart for ever.
	maxForgotten = 3
	// spareFile is what a signed file is called until it has its place.
	spareFile = "HALOGEN.NEW"
)

// nextKeys is what NextKeysFile's box holds. For is the SHA-256 hash of the db
// certificate that takes the old one's place: root of the running system can put an older
// box back, which is then about keys that this machine has no more.
type nextKeys struct {
	Format int          `json:"format"`
	For    contract.Hex `json:"for"`
	Old    []byte       `json:"old"`   // the superseded keys; empty where they are lost
	Taken  int          `json:"taken"` // how many variables the firmware had taken
	// Forgotten is how many times it held less than that at a later start.
	Forgotten int `json:"forgotten"`
}

// A KeyChange replaces this machine's Secure Boot keys. Of hw.Machine it uses Disks, ESP,
// Store, Now and Sleep. Secret and VolumeKey stay the caller's.
type KeyChange struct {
	hw.Machine
	Disk      hw.Disk
	Variables enroll.Variables
	Random    io.Reader
	Lock      *rootlock.Lock
	VolumeKey []byte
	Secret    *policy.Secret
	Date      time.Time // of the image: no update of a variable is older
	Say       func(format string, args ...any)
	Log       *pcr.Log // of this boot
	// Admit has the TPM's record be for this boot, and for those that differ from it by
	// having one of these values in PCR 7. nil where the TPM cannot be told of anything
	// in this boot: nothing is written to the firmware then.
	Admit func(values []pcr.Digest) error

	admitted []pcr.Digest // besides this boot's
}

// NewKeys are keys that are about to replace those that a machine has.
type NewKeys struct {
	old, fresh *secureboot.KeySet
	next       *secureboot.List
	// Values are what PCR 7 will be after each write to the firmware, the last one first.
	Values []pcr.Digest
}

// Wipe overwrites both sets of keys.
func (n *NewKeys) Wipe() {
	if n != nil {
		wipeKeys(n.old, n.fresh)
	}
}

// Begin makes new keys for a machine whose secret is about to be replaced. It writes
// nothing: ReplaceSecret puts them in place. The caller wipes them.
func (k *KeyChange) Begin(newKeys func(io.Reader, time.Time) (*secureboot.KeySet, error), s enroll.State) (_ *NewKeys, err error) {
	n := new(NewKeys)
	if n.old, err = StoredKeys(k.Store, k.Secret, k.Lock); err != nil {
		return nil, err
	}
	if n.old == nil || !Enforces(s) || k.Lock.Sealed == nil {
		n.Wipe()
		return nil, errors.New("there are no Secure Boot keys to be replaced: this machine has none, or its firmware does not enforce them")
	}
	defer func() {
		if err != nil {
			n.Wipe()
		}
	}()
	had, err := StoredList(k.Store, k.Secret, k.Lock)
	if err != nil {
		return nil, err
	}
	if had.Bare {
		return nil, errBareList
	}
	if err := k.ESP.Read(k.Disk, func(files fs.FS) error { return noneReplaced(files, had) }); err != nil {
		return nil, err
	}
	if n.fresh, err = newKeys(k.Random, k.Date); err != nil {
		return nil, err
	}
	n.fresh.Owner = n.old.Owner // of all that the owner has let start, too
	if n.next, err = had.Rekey(n.old, n.fresh); err != nil {
		return nil, err
	}
	n.Values, err = predict(s, k.Log, had.Wanted, n.next.Wanted)
	return n, err
}

// noneReplaced refuses to begin while the machine is started by a boot manager that
// another has replaced: the new key does not sign that one.
func noneReplaced(files fs.FS, list *secureboot.List) error {
	managers, err := FindManagers(files)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(managers, func(m Manager) bool { return list.Replaced(m.Signed) }) {
		return errors.New("the EFI system partition has an old boot manager, which another is about to replace: start the system once more, and then this can be done")
	}
	return nil
}

// note is what NextKeysFile has of keys that are about to come.
func (n *NewKeys) note(random io.Reader, secret *policy.Secret) ([]byte, error) {
	of := sha256.Sum256(n.fresh.DB.Certificate.Raw)
	note := nextKeys{Format: nextKeysFormat, For: of[:]}
	key := secret.Key(oldKeysPurpose)
	defer clear(key[:])
	var err error
	if note.Old, err = secureboot.Wrap(random, key, oldKeysPurpose, n.old); err != nil {
		return nil, err
	}
	return note.box(random, secret)
}

func (n *nextKeys) box(random io.Reader, secret *policy.Secret) ([]byte, error) {
	text, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	return secret.Box(random, nextKeysPurpose, text)
}

// keep writes NextKeysFile: one write, of which a cut leaves the old file or the new one.
func (k *KeyChange) keep(n *nextKeys) error {
	box, err := n.box(k.Random, k.Secret)
	if err == nil {
		err = k.Store.Keep(NextKeysFile, box)
	}
	return err
}

// predict returns what PCR 7 will be after each write to the firmware that is still to
// come, the last one first; as it is, where there is none. What starts a boot is measured
// with the entry of db that lets it: the old certificate until db is written, the new one
// after it.
func predict(s enroll.State, log *pcr.Log, had, next secureboot.Wanted) (values []pcr.Digest, err error) {
	if log == nil {
		return nil, errors.New("what PCR 7 will be with new Secure Boot keys is not known: there is no event log of this boot")
	}
	authorities, err := log.Authorities()
	if err != nil {
		return nil, err
	}
	was, will := had.DB.Without(next.DB), next.DB.Without(had.DB)
	replace := func() {
		for i, a := range authorities {
			if len(was) == 1 && len(will) == 1 && slices.Equal(a, was[0].SignatureData()) {
				authorities[i] = will[0].SignatureData()
			}
		}
	}
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: s.PK.Raw, KEK: s.KEK.Raw, DB: s.DB.Raw, DBX: s.DBX.Raw}
	for _, v := range []struct {
		into      *[]byte
		now, want secureboot.Database
	}{{&vars.PK, s.PK.Content, next.PK}, {&vars.KEK, s.KEK.Content, next.KEK}, {&vars.DB, s.DB.Content, next.DB}} {
		last := v.into == &vars.DB
		if last {
			replace()
		}
		held := v.now.Same(v.want)
		if held && !(last && len(values) == 0) {
			continue
		}
		if !held {
			if *v.into, err = v.want.Marshal(); err != nil {
				return nil, err
			}
		}
		value, err := pcr.PredictPCR7(log, vars, authorities)
		if err != nil {
			return nil, err
		}
		values = append([]pcr.Digest{value}, values...)
	}
	return values, nil
}

// KeysUnfinished reports whether there is anything for Finish to do. Who removes
// NextKeysFile does not end it: the header knows of it as well.
func KeysUnfinished(store hw.Store, lock *rootlock.Lock) bool {
	_, err := store.Read(NextKeysFile, 0)
	return lock != nil && len(lock.NextOwnerSignature) > 0 || !errors.Is(err, fs.ErrNotExist)
}

// Finish goes on with a change of the keys that has begun, and reports whether it has
// written to the firmware: then the machine has to start again, so that it is seen
// whether it enforces the new keys.
//
// started is what the firmware held when this boot began; nil where a person asks for it
// at the recovery console, which may have written to the firmware since.
func (k *KeyChange) Finish(started *enroll.State) (wrote bool, err error) {
	c, err := k.read()
	if c == nil || err != nil {
		return false, err
	}
	defer c.wipe()
	if c.ended {
		return false, k.clean(c)
	}
	s, err := enroll.Observe(k.Variables)
	if err != nil {
		return false, err
	}
	had, err := c.had(s)
	if err != nil {
		return false, err
	}
	done, err := enroll.Succeeded(s, had, c.next.Wanted)
	switch {
	case err != nil:
		return false, err
	case done == all && started == nil:
		return true, nil // the next start shows it
	case done == all && !Enforces(*started):
		return false, errors.New("the firmware holds this machine's new Secure Boot keys and does not enforce them: switch Secure Boot on in its setup")
	case done == all:
		k.Say("the firmware enforces this machine's new Secure Boot keys, and the old ones are gone")
		return false, k.clean(c)
	case k.Admit == nil:
		return false, errWaits
	}
	if err := k.count(c, done, started); err != nil {
		return false, err
	}
	if err := k.succeed(c, had); err != nil {
		return false, k.taken(c, had, err)
	}
	c.note.Taken = all
	return true, k.keep(&c.note) // cut before it, what is forgotten then is not counted
}

// all is how many variables have the new keys at the end: PK, KEK and db.
const all = 3

// errWaits leaves the firmware alone in a boot in which the TPM cannot be told what comes
// of it.
var errWaits = errors.New("the replacement of the Secure Boot keys waits for a start that the TPM opens, or that its owner accepts; until then the old ones start this machine")

// count notes how much the firmware holds at a start, and gives up on one that goes on
// forgetting what it has taken. Somebody who asks for it at the console has it try again.
func (k *KeyChange) count(c *change, done int, started *enroll.State) error {
	forgot := started != nil && done < c.note.Taken
	switch {
	case started == nil:
		c.note.Forgotten = 0
	case forgot:
		c.note.Forgotten++
	case c.note.Forgotten < maxForgotten:
		return nil
	}
	if c.note.Forgotten >= maxForgotten {
		return k.giveUp(c, done, "`reseal --new-secret --new-keys` at the recovery console tries again. ", fmt.Errorf("the firmware has forgotten the new keys %d times", c.note.Forgotten))
	}
	c.note.Taken = done
	return k.keep(&c.note)
}

// taken says what has become of a write to the firmware that failed.
func (k *KeyChange) taken(c *change, had secureboot.Wanted, failed error) error {
	s, err := enroll.Observe(k.Variables)
	if err != nil {
		return errors.Join(failed, err)
	}
	done, err := enroll.Succeeded(s, had, c.next.Wanted)
	if err != nil {
		return errors.Join(failed, err)
	}
	return k.giveUp(c, done, goesOn, failed)
}

// What an owner can do about firmware that does not take the rest.
const (
	goesOn = "Each start tries again, and so does `reseal --new-secret --new-keys` at the recovery console. "
	wayOut = "This machine starts as before, the recovery key opens your data, and updates wait. If it stays like this, clear the Secure Boot keys in the firmware's setup (Setup Mode), start, " +
		"type the recovery key, and give the firmware this machine's own keys again, which are the new ones"
)

// giveUp takes a change back of which the firmware has taken nothing. Where it has taken
// a part, the new keys stay, since only they can change it again.
func (k *KeyChange) giveUp(c *change, done int, again string, why error) error {
	if done > 0 || c.old == nil {
		return fmt.Errorf("the firmware holds %d of 3 new Secure Boot keys; the old db key still starts this machine: %w. %s%s", done, why, again, wayOut)
	}
	return errors.Join(fmt.Errorf("the Secure Boot keys stay as they are: %w", why), k.goBack(c))
}

// succeed signs what the machine starts, and then gives the firmware the new keys.
func (k *KeyChange) succeed(c *change, had secureboot.Wanted) error {
	signer := enroll.DBSigner{Pair: c.fresh.DB, Time: c.fresh.DB.Certificate.NotBefore}
	if err := k.signBeside(c, had, signer); err != nil {
		return err
	}
	k.admitted = nil
	e := enroll.Successor{
		Variables: k.Variables, Old: c.old, Fresh: c.fresh, Had: had, Wanted: c.next.Wanted,
		Time: secureboot.Timestamp(k.Now(), k.Date), Pause: k.Sleep, Say: func(m string) { k.Say("%s", m) },
		Signed: func() (err error) {
			return k.ESP.Write(k.Disk, func(dir hw.ESPDir) error {
				return enroll.CheckSigned(dir, signer, AllowedAnew(c.next), c.next.Wanted.DBX)
			})
		},
		Foretell: func(s enroll.State) error { return k.foretell(s, had, c.next.Wanted) },
	}
	if err := e.Signed(); err != nil {
		return err
	}
	return e.Run()
}

// foretell has the TPM's record allow what PCR 7 will be after each write that is still
// to come, by what the firmware holds now: it may keep an entry otherwise than it was
// written, or hold another one since.
func (k *KeyChange) foretell(s enroll.State, had, next secureboot.Wanted) error {
	values, err := predict(s, k.Log, had, next)
	if err != nil {
		return err
	}
	known := func(v pcr.Digest) bool { return slices.Contains(k.admitted, v) }
	if k.admitted != nil && !slices.ContainsFunc(values, func(v pcr.Digest) bool { return !known(v) }) {
		return nil
	}
	if err := k.Admit(values); err != nil {
		return fmt.Errorf("the firmware got no new key, because the TPM was not told what comes of it: %w", err)
	}
	k.admitted = values
	return nil
}

// goBack puts the old keys in the place of the new ones again, of which the firmware has
// none. The file is one write: cut before it, the next boot goes on, or comes here again;
// cut after it, the old keys have made the owner signature, and what is left is clean's.
func (k *KeyChange) goBack(c *change) error {
	list, err := c.next.Rekey(c.fresh, c.old)
	if err != nil {
		return err
	}
	wrapped, err := firstboot.WrapKeys(k.Random, k.Secret, c.old, list)
	if err == nil {
		err = KeepKeys(k.Store, wrapped)
	}
	if err != nil {
		return err
	}
	c.fresh, c.old = c.old, c.fresh // for them to be wiped
	return k.clean(c)
}

// clean ends a change, one way or the other: the owner signature is by the key that stays alone, the
// record is for this boot alone, and what says that there is anything to do goes last.
// Cut anywhere, it is called again.
func (k *KeyChange) clean(c *change) error {
	if owned, _ := k.Lock.Signed(c.fresh.DB.Certificate); !owned || len(k.Lock.NextOwnerSignature) > 0 {
		f, err := k.Disks.OpenPartition(k.Disk, layout.Root, true)
		if err != nil {
			return err
		}
		if err := errors.Join(k.Lock.SignAgain(k.Random, f, k.VolumeKey, c.fresh.DB.Key), f.Close()); err != nil {
			return err
		}
	}
	if k.Admit == nil {
		return nil
	}
	if err := k.Admit(nil); err != nil {
		return err
	}
	return k.remove()
}

func (k *KeyChange) remove() error {
	if err := k.Store.Remove(NextKeysFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
