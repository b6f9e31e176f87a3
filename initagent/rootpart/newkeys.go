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
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/provision"
	"halogenos.internal/initagent/vault"
)

// New Secure Boot keys replace the old ones, in firmware that enforces those.
//
// The order: the TPM's record gets what PCR 7 will be after each write to the firmware, so
// that the machine opens by itself whatever was written last; NextKeysFile gets the new
// keys, under the machine secret; each file that the machine starts is signed by the new
// key besides the old one, and so is the deed; the firmware's variables get the new keys
// (enrol.Successor). The next boot that finds all of them enforced settles it: the new
// keys take the place of the old ones on the root partition, the old deed and what PCR 7
// was go, and NextKeysFile goes last.
//
// Cut before NextKeysFile, the record allows boots that never come to be. Cut after it,
// Finish goes on, here or at the next boot: every step is skipped where it was done. What
// of the firmware was not predicted asks for the recovery key, and the same happens then.

const (
	nextKeysFormat  = 1
	nextKeysPurpose = "next-keys"
	maxNextKeys     = 2*int64(secureboot.MaxWrappedList) + 4<<10 // in base64, in JSON
	// maxKeyStarts is how many starts begin to write to the firmware: one that takes
	// keys and forgets them would otherwise restart for ever.
	maxKeyStarts = 3
	// spareFile is what a signed file is called until it has its place.
	spareFile = "HALOGEN.NEW"
)

// nextKeys is what NextKeysFile's box holds. From is the SHA-256 hash of the db
// certificate that gives way: root of the running system can put an older box back, which
// is then for keys that this machine has no more.
type nextKeys struct {
	Format int          `json:"format"`
	From   contract.Hex `json:"from"`
	Keys   []byte       `json:"keys"`
	Starts int          `json:"starts"`
}

// A KeyChange replaces this machine's Secure Boot keys. Of hw.Machine it uses Disks, ESP,
// Store, Now and Sleep. Secret and VolumeKey stay the caller's.
type KeyChange struct {
	hw.Machine
	Disk      hw.Disk
	Variables enrol.Variables
	Random    io.Reader
	Lock      *vault.Lock
	VolumeKey []byte
	Secret    *policy.Secret
	Date      time.Time // of the image: no update of a variable is older
	Say       func(format string, args ...any)
}

// change is one that has begun, or is about to.
type change struct {
	note       nextKeys
	old, fresh *secureboot.KeySet
	had, next  *secureboot.List
	settled    bool // the new keys are in place on the root partition
}

func (c *change) wipe() {
	c.old.Wipe()
	c.fresh.Wipe()
}

// Begin makes new keys and returns the values that PCR 7 will have, the last one first,
// and what stores the keys, after which Finish is called. Nothing is written before.
func (k *KeyChange) Begin(newKeys func(io.Reader, time.Time) (*secureboot.KeySet, error), s enrol.State, log *pcr.Log) (values []pcr.Digest, store func() error, err error) {
	c := new(change)
	if c.old, err = StoredKeys(k.Store, k.Secret); err != nil {
		return nil, nil, err
	}
	if c.old == nil || !Enforces(s) {
		return nil, nil, errors.New("there are no Secure Boot keys to be replaced: this machine has none, or its firmware does not enforce them")
	}
	defer c.old.Wipe()
	if c.had, err = StoredList(k.Store, k.Secret); err != nil {
		return nil, nil, err
	}
	if c.fresh, err = newKeys(k.Random, k.Date); err != nil {
		return nil, nil, err
	}
	defer c.fresh.Wipe()
	c.fresh.Owner = c.old.Owner // of all that the owner has let start, too
	if c.next, err = c.had.Rekey(c.old, c.fresh); err != nil {
		return nil, nil, err
	}
	if values, err = c.predict(s, log); err != nil {
		return nil, nil, err
	}
	from := sha256.Sum256(c.old.DB.Certificate.Raw)
	c.note = nextKeys{Format: nextKeysFormat, From: from[:]}
	if c.note.Keys, err = provision.WrapKeys(k.Random, k.Secret, c.fresh, c.next); err != nil {
		return nil, nil, err
	}
	return values, func() error { return k.keep(&c.note) }, nil
}

// keep writes NextKeysFile: one write, of which a cut leaves the old file or the new one.
func (k *KeyChange) keep(n *nextKeys) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	box, err := k.Secret.Box(k.Random, nextKeysPurpose, text)
	if err != nil {
		return err
	}
	if err := k.Store.MakeFolder(OwnFolder, 0o700); err != nil {
		return err
	}
	return k.Store.Keep(NextKeysFile, box)
}

// predict returns what PCR 7 will be after each write to the firmware, the last one
// first. What starts a boot is measured with the entry of db that lets it: the old
// certificate until db is written, the new one after it.
func (c *change) predict(s enrol.State, log *pcr.Log) (values []pcr.Digest, err error) {
	authorities, err := log.Authorities()
	if err != nil {
		return nil, err
	}
	was := secureboot.Certificate(c.had.Owner, c.old.DB.Certificate).SignatureData()
	will := secureboot.Certificate(c.next.Owner, c.fresh.DB.Certificate).SignatureData()
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: s.PK.Raw, KEK: s.KEK.Raw, DB: s.DB.Raw, DBX: s.DBX.Raw}
	for _, v := range []struct {
		into    *[]byte
		content secureboot.Database
	}{{&vars.PK, c.next.Wanted.PK}, {&vars.KEK, c.next.Wanted.KEK}, {&vars.DB, c.next.Wanted.DB}} {
		if *v.into, err = v.content.Marshal(); err != nil {
			return nil, err
		}
		if v.into == &vars.DB {
			for i, a := range authorities {
				if slices.Equal(a, was) {
					authorities[i] = will
				}
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

// KeysUnfinished reports whether there is anything for Finish to do.
func KeysUnfinished(store hw.Store) bool {
	_, err := store.Read(NextKeysFile, 0)
	return !errors.Is(err, fs.ErrNotExist)
}

// read returns the change that has begun; nil where there is none. A box that this
// machine's initramfs has not made, or that is for other keys than it has, is removed.
func (k *KeyChange) read() (*change, error) {
	box, err := k.Store.Read(NextKeysFile, maxNextKeys)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var text []byte
	if err == nil {
		text, err = k.Secret.Unbox(nextKeysPurpose, box)
		if err != nil {
			err = errors.Join(hw.ErrUnfit, err)
		}
	}
	c := new(change)
	if err == nil {
		err = json.Unmarshal(text, &c.note)
	}
	switch {
	case errors.Is(err, hw.ErrUnfit):
		k.Say("%s is not what this machine has written, and is removed", NextKeysFile)
		return nil, k.Store.Remove(NextKeysFile)
	case err != nil:
		return nil, err
	case c.note.Format != nextKeysFormat:
		return nil, fmt.Errorf("%s: format %d, want %d", NextKeysFile, c.note.Format, nextKeysFormat)
	}
	return k.open(c)
}

func (k *KeyChange) open(c *change) (_ *change, err error) {
	if c.had, err = StoredList(k.Store, k.Secret); err != nil {
		return nil, err
	}
	if c.old, err = StoredKeys(k.Store, k.Secret); err != nil {
		return nil, err
	}
	if c.old == nil || c.had == nil {
		return nil, errors.New("this machine's Secure Boot keys are missing from the root partition, so they cannot be replaced")
	}
	if c.fresh, err = provision.UnwrapKeys(k.Secret, c.note.Keys); err != nil {
		c.old.Wipe()
		return nil, err
	}
	now := sha256.Sum256(c.old.DB.Certificate.Raw)
	c.settled = c.old.Equal(c.fresh)
	switch {
	case c.settled:
		c.next = c.had
	case !slices.Equal(now[:], c.note.From):
		c.wipe()
		k.Say("%s is for keys that this machine has no more, and is removed", NextKeysFile)
		return nil, k.Store.Remove(NextKeysFile)
	default:
		c.next, err = c.had.Rekey(c.old, c.fresh)
	}
	if err != nil {
		c.wipe()
		return nil, err
	}
	return c, nil
}

// Finish goes on with a change of the keys that has begun, and reports whether it has
// written to the firmware: then the machine has to start again, so that it is seen
// whether it enforces the new keys.
//
// started is what the firmware held when this boot began; nil where it has been written
// to since, as the recovery console's may have been. narrow leaves in the TPM's record
// what the machine starts as now; nil where that cannot be said in this boot.
func (k *KeyChange) Finish(started *enrol.State, narrow func() error) (wrote bool, err error) {
	c, err := k.read()
	if c == nil || err != nil {
		return false, err
	}
	defer c.wipe()
	s, err := enrol.Observe(k.Variables)
	if err != nil {
		return false, err
	}
	if c.settled {
		return false, k.settle(c, narrow)
	}
	done, err := enrol.Succeeded(s, c.had.Wanted, c.next.Wanted)
	if err != nil {
		return false, err
	}
	if done == 3 {
		switch {
		case started == nil:
			return true, nil // the next start shows it
		case !Enforces(*started):
			return false, errors.New("the firmware holds this machine's new Secure Boot keys and does not enforce them: switch Secure Boot on in its setup")
		}
		return false, k.settle(c, narrow)
	}
	if c.note.Starts >= maxKeyStarts {
		return false, k.giveUp(done, fmt.Errorf("the firmware has forgotten the new keys %d times", c.note.Starts))
	}
	c.note.Starts++ // cut after this, one start is counted that has written nothing
	if err := k.keep(&c.note); err != nil {
		return false, err
	}
	if err := k.succeed(c); err != nil {
		return k.taken(c, err)
	}
	return true, nil
}

// taken says what has become of a write to the firmware that failed.
func (k *KeyChange) taken(c *change, failed error) (bool, error) {
	s, err := enrol.Observe(k.Variables)
	if err != nil {
		return false, errors.Join(failed, err)
	}
	done, err := enrol.Succeeded(s, c.had.Wanted, c.next.Wanted)
	if err != nil {
		return false, errors.Join(failed, err)
	}
	return false, k.giveUp(done, failed)
}

// giveUp takes a change back of which the firmware has taken nothing. Where it has taken
// a part, the new keys stay, since only they can change it again.
func (k *KeyChange) giveUp(done int, why error) error {
	if done > 0 {
		return fmt.Errorf("the firmware holds %d of 3 new Secure Boot keys; the old db key still starts this machine: %w", done, why)
	}
	return errors.Join(fmt.Errorf("the Secure Boot keys stay as they are: %w", why), k.Store.Remove(NextKeysFile))
}

// succeed signs what the machine starts, and then gives the firmware the new keys.
func (k *KeyChange) succeed(c *change) error {
	signer := enrol.DBSigner{Pair: c.fresh.DB, Time: c.fresh.DB.Certificate.NotBefore}
	if err := k.signBeside(c, signer); err != nil {
		return err
	}
	f, err := k.Disks.OpenPartition(k.Disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	if err := errors.Join(k.Lock.AddDeed(k.Random, f, k.VolumeKey, c.fresh.DB.Key, c.fresh.DB.Certificate), f.Close()); err != nil {
		return err
	}
	e := enrol.Successor{
		Variables: k.Variables, Old: c.old, Fresh: c.fresh, Had: c.had.Wanted, Wanted: c.next.Wanted,
		Time: secureboot.Timestamp(k.Now(), k.Date), Pause: k.Sleep, Say: func(m string) { k.Say("%s", m) },
		Signed: func() (err error) {
			return k.ESP.Write(k.Disk, func(dir hw.ESPDir) error { return enrol.CheckSigned(dir, signer, Allowed(c.next), c.next.Wanted.DBX) })
		},
	}
	if err := e.Signed(); err != nil {
		return err
	}
	return e.Run()
}

// settle puts the new keys in the place of the old ones, once the firmware enforces
// them. The file is one write: cut before it, the old keys are stored still, and this is
// done again; cut after it, the rest is. The deed comes next, the record after it, and
// what says that there is anything to do goes last.
func (k *KeyChange) settle(c *change, narrow func() error) error {
	if !c.settled {
		wrapped, err := provision.WrapKeys(k.Random, k.Secret, c.fresh, c.next)
		if err != nil {
			return err
		}
		if err := KeepKeys(k.Store, wrapped); err != nil {
			return err
		}
		k.Say("the firmware enforces this machine's new Secure Boot keys, and the old ones are gone")
	}
	if len(k.Lock.NextDeed) > 0 {
		f, err := k.Disks.OpenPartition(k.Disk, layout.RootNumber, true)
		if err != nil {
			return err
		}
		// The same object, with a deed by the new key alone.
		if err := errors.Join(k.Lock.Rebind(k.Random, f, k.VolumeKey, k.Secret, k.Lock.Sealed, c.fresh.DB.Key), f.Close()); err != nil {
			return err
		}
	}
	if narrow == nil {
		return nil
	}
	if err := narrow(); err != nil {
		return err
	}
	return k.Store.Remove(NextKeysFile)
}
