package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
)

// observeKeys says how far the Secure Boot keys have come.
func (a *Agent) observeKeys() error {
	state, err := enroll.Observe(a.Variables)
	if err != nil {
		if a.Contract.SecureBoot == contract.Optional {
			a.State.Keys = slot.KeysUnneeded
			return nil
		}
		return err
	}
	a.FirmwareKeys = state
	var wanted secureboot.Wanted
	if a.pending != nil {
		if wanted, err = secureboot.ParseWanted(a.pending.Wanted); err != nil {
			return err
		}
	}
	a.State.Keys = slot.JudgeKeys(a.State, a.facts, slot.Firmware{
		Enforces: rootpart.Enforces(state), SetupMode: state.SetupMode == enroll.On, Compared: enroll.Keys(state, wanted),
	})
	return nil
}

// readPending reads what the first boot left for the second, the newest file
// that makes sense. None is nil, and so is an ESP that cannot be read: a machine
// in use does without, and on any other nothing is lost by starting over.
func (a *Agent) readPending() error {
	a.pending, a.leftovers, a.marked = nil, false, false
	err := a.ReadESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, firstboot.Directory)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		newest := -1
		for _, e := range entries {
			a.unlocked = a.unlocked || lastgood.Is(e.Name())
			a.marked = a.marked || strings.EqualFold(e.Name(), path.Base(deletionMark))
			n, ok := firstboot.Count(e.Name())
			if !ok {
				continue
			}
			a.leftovers = true
			// A file that a cut left unfinished is as good as none: it is
			// written before anything depends on it.
			text, err := bounded.File(files, path.Join(firstboot.Directory, e.Name()), firstboot.MaxSize)
			if err != nil {
				a.Log.Say("%v", err)
				continue
			}
			if p, err := firstboot.Parse(text); err == nil && n > newest {
				a.pending, newest = p, n
			}
		}
		return err
	})
	if err != nil {
		a.Log.Say("what an earlier start may have left on the ESP is not known: %v", err)
	}
	a.forgetDeletion()
	return nil
}

// enroll makes this machine's Secure Boot keys, signs with them what the machine
// starts, and enrolls them.
//
// The order: the private keys are on the disk, sealed, before anything is signed
// by them; everything is signed before the firmware is told; and PK, which makes
// it count, comes last (enroll.Plan). Cut anywhere, the machine is in Setup Mode,
// starts anything, and comes back here; cut after PK, everything is in place.
func (a *Agent) enroll() error {
	if a.State.Root == slot.RootOpen {
		// The keys lie there. What the ESP says of them, anybody can have written: with
		// that, the firmware would get somebody else's, and start nothing of ours.
		a.pending = nil
	}
	secret, keys, stored, err := a.ownKeys()
	if err != nil {
		return err
	}
	defer secret.Wipe()
	defer keys.Wipe()
	list, err := a.enrollList(secret, keys, stored)
	if err != nil {
		return err
	}
	a.replaceRefused(list)
	signer := enroll.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
	allowed := a.maySign(list)
	err = a.WriteESP(func(dir hw.ESPDir) error {
		results, err := enroll.SignAll(dir, a.FirmwareKeys, signer, allowed)
		for _, r := range results {
			a.Log.Say("%s", r)
		}
		if err != nil {
			return err
		}
		enrollments := 0
		if a.pending != nil {
			enrollments = a.pending.Enrollments
		}
		e := enroll.Enroller{
			Variables: a.Variables, Keys: keys, Wanted: list.Wanted,
			Time: secureboot.Timestamp(a.Now(), a.Contract.Date()),
			Signed: func() error {
				return enroll.CheckSigned(dir, signer, allowed, slices.Concat(list.Wanted.DBX, a.FirmwareKeys.DBX.Content))
			},
			Pause: a.Sleep,
			Say:   func(m string) { a.Log.Say("%s", m) },
		}
		if err := e.Run(enrollments); err != nil {
			return err
		}
		return a.countEnrollment(dir)
	})
	if err == nil {
		a.foretellAgain(secret, list)
	}
	if err == nil && a.State.Root == slot.RootOpen {
		err = a.Store.Keep(rootpart.EnrolledFile, nil)
	}
	return err
}

// enrollList returns what is to be enrolled and signed: what an enrollment that was
// cut decided, or what is decided now, and then kept together with the keys.
func (a *Agent) enrollList(secret *policy.Secret, keys *secureboot.KeySet, stored *secureboot.List) (*secureboot.List, error) {
	if a.pending != nil && !stored.Bare {
		return stored, nil
	}
	list, err := a.listToEnroll(keys, stored)
	if err != nil {
		return nil, err
	}
	return list, a.keepKeys(secret, keys, list)
}

// countEnrollment makes firmware that forgets its keys at every restart end in
// the recovery console and not in a loop. Cut before it, one enrollment is not
// counted.
func (a *Agent) countEnrollment(dir hw.ESPDir) error {
	if a.pending == nil {
		return nil
	}
	next := *a.pending
	return succeedPending(dir, a.pending, &next)
}

// succeedPending writes the file that takes the place of the one that is there: its name
// counts on. Cut anywhere, the newest file that is whole is the old one or the new one.
func succeedPending(dir hw.ESPDir, old, next *firstboot.Pending) error {
	next.Enrollments = old.Enrollments + 1
	text, err := next.Encode()
	if err != nil {
		return err
	}
	return enroll.Replace(dir, firstboot.Name(next.Enrollments), text, firstboot.Name(old.Enrollments))
}

// ownKeys returns the machine secret, the keys and their list: those that are on
// the root partition, those that an enrollment which was cut has made, or new keys,
// which have no list yet. The caller wipes secret and keys.
func (a *Agent) ownKeys() (*policy.Secret, *secureboot.KeySet, *secureboot.List, error) {
	if a.State.Root == slot.RootOpen && a.Secret != nil {
		return a.keysInRoot()
	}
	if a.pending != nil {
		secret, keys, _, err := a.openPending()
		var list *secureboot.List
		if err == nil {
			list, err = firstboot.UnwrapList(secret, a.pending.Keys)
		}
		if err == nil {
			return secret, keys, list, nil
		}
		// In Setup Mode with an empty root partition nothing depends on them.
		a.Log.Say("the keys of an earlier start cannot be used (%v): making new ones", err)
		a.pending = nil
	}
	a.Released = true
	secret, err := policy.NewSecret(a.Random)
	if err != nil {
		return nil, nil, nil, err
	}
	keys, err := a.NewKeys(a.Random, a.Contract.Date())
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, nil, nil
}

// keysInRoot is ownKeys for a machine without a TPM, whose keys lie on the root
// partition from the beginning. It takes the secret over.
func (a *Agent) keysInRoot() (*policy.Secret, *secureboot.KeySet, *secureboot.List, error) {
	secret := a.Secret
	a.Secret = nil
	list, _, err := rootpart.OwnList(a.Store, secret, a.Lock, nil)
	var keys *secureboot.KeySet
	if err == nil {
		keys, err = a.StoredKeys(secret)
	}
	if err == nil && keys == nil {
		keys, err = a.NewKeys(a.Random, a.Contract.Date())
	}
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, list, nil
}

// openPending unseals what the first boot left, and returns the record that
// allowed it; nil where the TPM holds none. The caller wipes secret and keys.
func (a *Agent) openPending() (*policy.Secret, *secureboot.KeySet, *policy.Record, error) {
	if a.Chip.Err != nil {
		return nil, nil, nil, a.Chip.Err
	}
	sealed, err := a.pending.SealedSecret()
	if err != nil {
		return nil, nil, nil, err
	}
	secret, record, err := a.Chip.TPM.Unseal(sealed)
	if err != nil {
		return nil, nil, nil, err
	}
	a.Released = true
	keys, err := firstboot.UnwrapKeys(secret, a.pending.Keys)
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, record, nil
}

// keepKeys puts the private keys where only the initramfs phase of this UKI on
// this machine can read them.
func (a *Agent) keepKeys(secret *policy.Secret, keys *secureboot.KeySet, list *secureboot.List) error {
	wrapped, err := firstboot.WrapKeys(a.Random, secret, keys, list)
	if err != nil {
		return err
	}
	if a.State.Root == slot.RootOpen {
		a.List = list
		return rootpart.KeepKeys(a.Store, wrapped)
	}
	sealed, err := a.sealProvisionally(secret, nil)
	if err != nil {
		return err
	}
	p := &firstboot.Pending{Keys: wrapped}
	if p.Sealed, err = sealed.Encode(); err != nil {
		return err
	}
	if p.Wanted, err = list.Wanted.Marshal(); err != nil {
		return err
	}
	text, err := p.Encode()
	if err != nil {
		return err
	}
	if err := a.WriteESP(func(dir hw.ESPDir) error { return writePending(dir, text) }); err != nil {
		return err
	}
	a.pending = p
	return nil
}

// writePending writes the first file of its kind. What lies under its name is
// of a start that was cut before anything depended on it.
func writePending(dir hw.ESPDir, text []byte) error {
	if err := dir.MakeDirectory(firstboot.Directory); err != nil {
		return err
	}
	if err := dir.SyncDir(path.Dir(firstboot.Directory)); err != nil {
		return err
	}
	if err := removeFiles(dir, isPending); err != nil {
		return err
	}
	return enroll.Replace(dir, firstboot.Name(0), text)
}

func isPending(name string) bool {
	_, ours := firstboot.Count(name)
	return ours
}

// removeFiles takes away those files of our directory whose name is one of these.
// Each is overwritten first, as far as the medium lets us: where the TPM has no
// NV index, the object that the first boot leaves is bound to less than the one
// that takes its place. Cut before the name is gone, it is removed the next
// time.
func removeFiles(dir hw.ESPDir, these func(name string) bool) error {
	names, err := dir.List(firstboot.Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Directory || !these(n.Name) {
			continue
		}
		name := path.Join(firstboot.Directory, n.Name)
		if err := overwrite(dir, name); err != nil {
			return fmt.Errorf("overwrite %s: %w", name, err)
		}
		if err := dir.Remove(name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return dir.SyncDir(firstboot.Directory)
}

func overwrite(dir hw.ESPDir, name string) error {
	old, err := dir.Read(name)
	if err != nil {
		return nil // damaged: its name can go, and that is all that can be done
	}
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, len(old)), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// sealProvisionally seals the machine secret to the initramfs phase of the
// running UKI. Where the TPM has an NV index, the object stays: it obeys whatever
// record is written there later. needed is an object whose index is not to be
// cleared meanwhile; or nil.
func (a *Agent) sealProvisionally(secret *policy.Secret, needed *policy.Sealed) (*policy.Sealed, error) {
	start, err := a.Expected()
	if err != nil {
		return nil, err
	}
	record, boots, err := start.Provisional()
	if err != nil {
		return nil, err
	}
	b := a.Binding()
	b.Needed = needed
	return b.Seal(secret, boots[0], record, boots[1:]...)
}

// checkEnforced is the check after the restart that ends an enrollment.
func (a *Agent) checkEnforced(wanted secureboot.Wanted) error {
	for _, d := range enroll.Enforced(a.FirmwareKeys, wanted) {
		return fmt.Errorf("the firmware does not enforce what was enrolled: %s", d)
	}
	return nil
}
