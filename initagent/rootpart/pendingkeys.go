package rootpart

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
)

// change is one that has begun.
type change struct {
	note  nextKeys
	old   *secureboot.KeySet // superseded; nil where NextKeysFile is gone
	fresh *secureboot.KeySet // in ListFile
	next  *secureboot.List
	ended bool // one way or the other: the keys in ListFile have made the owner signature
}

func (c *change) wipe() { wipeKeys(c.old, c.fresh) }

func wipeKeys(sets ...*secureboot.KeySet) {
	for _, k := range sets {
		if k != nil {
			k.Wipe()
		}
	}
}

// errStale is a NextKeysFile that this machine's initramfs has not made, or that is for
// keys which the machine has no more.
var errStale = errors.New("it is not for this machine's keys")

// errOtherForm is a NextKeysFile of another release. The superseded keys in it are as good
// as lost here. It stays until the change goes on without them.
var errOtherForm = errors.New("another release has written it")

// readNote reads NextKeysFile. A note that is not there is a change without superseded
// keys.
func readNote(store hw.Store, secret *policy.Secret) (n nextKeys, err error) {
	box, err := store.Read(NextKeysFile, maxNextKeys)
	if errors.Is(err, hw.ErrUnfit) {
		return n, errStale
	}
	if err != nil {
		return n, err
	}
	text, err := secret.Unbox(nextKeysPurpose, box)
	if err != nil {
		return n, errStale
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return n, err
	}
	if n.Format != nextKeysFormat {
		return n, errOtherForm
	}
	return n, nil
}

// readChange returns the change that has begun, or has ended and left something; nil
// where there is none. It writes nothing.
func readChange(store hw.Store, secret *policy.Secret, lock *rootlock.Lock) (_ *change, err error) {
	if !KeysUnfinished(store, lock) {
		return nil, nil
	}
	note, err := readNote(store, secret)
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, errStale) || errors.Is(err, errOtherForm)
	if err != nil && !missing || errors.Is(err, errStale) && len(lock.NextOwnerSignature) == 0 {
		return nil, err
	}
	c := &change{note: note}
	if c.next, err = StoredList(store, secret, lock); err != nil {
		if !errors.Is(err, errNotOwner) {
			err = fmt.Errorf("%s, which says what the firmware shall hold once the Secure Boot keys are replaced, cannot be read: %w. %s", ListFile, err, wayOut)
		}
		return nil, err
	}
	if c.fresh, err = StoredKeys(store, secret, lock); err != nil {
		return nil, err
	}
	if c.fresh == nil {
		return nil, errors.New("this machine's Secure Boot keys are missing from the root partition, so they cannot be replaced")
	}
	of := sha256.Sum256(c.fresh.DB.Certificate.Raw)
	c.ended, _ = lock.Signed(c.fresh.DB.Certificate)
	if missing || !c.ended && !slices.Equal(of[:], note.For) {
		c.note = nextKeys{Format: nextKeysFormat, For: of[:]}
		return c, nil
	}
	if len(note.Old) == 0 {
		return c, nil
	}
	key := secret.Key(oldKeysPurpose)
	defer clear(key[:])
	if c.old, err = secureboot.Unwrap(key, oldKeysPurpose, note.Old); err != nil {
		c.fresh.Wipe()
		return nil, err
	}
	if owned, _ := lock.Signed(c.old.DB.Certificate); !owned { // others than those that give way
		c.old.Wipe()
		c.old = nil
	}
	return c, nil
}

// read is readChange, and removes what is nobody's.
func (k *KeyChange) read() (*change, error) {
	c, err := readChange(k.Store, k.Secret, k.Lock)
	if errors.Is(err, errStale) {
		k.Say("%s is not what this machine has written, and is removed", NextKeysFile)
		return nil, k.remove()
	}
	return c, err
}

// errOldGone is for a change of which the firmware has taken nothing and the old keys are
// lost: root of the running system can remove NextKeysFile, or it is another release's.
var errOldGone = fmt.Errorf("the firmware holds this machine's old Secure Boot keys, and only their private keys can replace them. They were in %s, which is gone, or was written by another release, which can still replace them. %s", NextKeysFile, wayOut)

// had is what the firmware's variables held before the change. Where the superseded keys
// are lost it is what they hold now: with the new PK in place the new keys replace
// whatever that is.
func (c *change) had(s enroll.State) (secureboot.Wanted, error) {
	if c.old != nil {
		list, err := c.next.Rekey(c.fresh, c.old)
		if err != nil {
			return secureboot.Wanted{}, err
		}
		return list.Wanted, nil
	}
	had := c.next.Wanted
	if s.SetupMode == enroll.Off && !s.PK.Content.Same(had.PK) {
		return had, errOldGone
	}
	had.KEK, had.DB = s.KEK.Content, s.DB.Content
	return had, nil
}

// InForce is the list by which this machine is judged now: as it is stored, and, while
// the keys are replaced, with those that the firmware holds, variable by variable. In
// Setup Mode it holds none, and gets the new ones.
func InForce(store hw.Store, secret *policy.Secret, lock *rootlock.Lock, s enroll.State) (*secureboot.List, error) {
	c, err := readChange(store, secret, lock)
	if c == nil && (err == nil || errors.Is(err, errStale)) {
		return StoredList(store, secret, lock)
	}
	if err != nil {
		return nil, err
	}
	defer c.wipe()
	list := c.next
	if c.ended || s.SetupMode != enroll.Off {
		return list, nil
	}
	for v, now := range map[secureboot.Variable]secureboot.Database{secureboot.PK: s.PK.Content, secureboot.KEK: s.KEK.Content, secureboot.DB: s.DB.Content} {
		fresh, old := c.pair(v, now, lock)
		if old == nil || now.Contains(secureboot.Certificate(list.Owner, fresh)) {
			continue
		}
		if list, err = list.Swap(v, fresh, old); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// pair are the new certificate of a variable and the one that it replaces; nil where that
// is not known. Where the superseded keys are lost the db key is known by its owner signature, and
// of the others nobody can say whose they are.
func (c *change) pair(v secureboot.Variable, now secureboot.Database, lock *rootlock.Lock) (fresh, old *x509.Certificate) {
	of := func(k *secureboot.KeySet) *x509.Certificate {
		return map[secureboot.Variable]secureboot.Pair{secureboot.PK: k.PK, secureboot.KEK: k.KEK, secureboot.DB: k.DB}[v].Certificate
	}
	fresh = of(c.fresh)
	if c.old != nil {
		return fresh, of(c.old)
	}
	for _, e := range now {
		if v != secureboot.DB || e.Type != secureboot.TypeX509 {
			continue
		}
		own, err := x509.ParseCertificate(e.Data)
		if err != nil {
			continue
		}
		if owned, _ := lock.Signed(own); owned {
			return fresh, own
		}
	}
	return fresh, nil
}

// Ahead are the values that PCR 7 will have while a change of the keys goes on; nil where
// none has begun, or they are not known.
func Ahead(store hw.Store, secret *policy.Secret, lock *rootlock.Lock, s enroll.State, log *pcr.Log) []pcr.Digest {
	c, err := readChange(store, secret, lock)
	if c == nil || err != nil {
		return nil
	}
	defer c.wipe()
	had, err := c.had(s)
	if err != nil || c.ended {
		return nil
	}
	values, err := predict(s, log, had, c.next.Wanted)
	if err != nil {
		return nil
	}
	return values
}
