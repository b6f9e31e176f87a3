package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
)

// Enroll makes this machine's Secure Boot keys, signs with them what the machine
// starts, and enrolls them.
//
// The order: the private keys are on the disk, sealed, before anything is signed
// by them; everything is signed before the firmware is told; and PK, which makes
// it count, comes last (enroll.Plan). Cut anywhere, the machine is in Setup Mode,
// starts anything, and comes back here; cut after PK, everything is in place.
func Enroll(h *host.Host, foretold *rootpart.Start) error {
	if h.State.Root == bootflow.RootOpen {
		// The keys lie there. What the ESP says of them, anybody can have written: with
		// that, the firmware would get somebody else's, and start nothing of ours.
		h.Left.Pending = nil
	}
	secret, keys, stored, err := ownKeys(h)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	defer keys.Wipe()
	list, err := enrollList(h, secret, keys, stored)
	if err != nil {
		return err
	}
	replaceRefused(h, list)
	signer := enroll.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
	allowed := maySign(h, list)
	err = h.WriteESP(func(dir hw.ESPDir) error {
		results, err := enroll.SignAll(dir, h.FirmwareKeys, signer, allowed)
		for _, r := range results {
			h.Log.Say("%s", r)
		}
		if err != nil {
			return err
		}
		enrollments := 0
		if h.Left.Pending != nil {
			enrollments = h.Left.Pending.Enrollments
		}
		e := enroll.Enroller{
			Variables: h.Variables, Keys: keys, Wanted: list.Wanted,
			Time: secureboot.Timestamp(h.Now(), h.Contract.Date()),
			Signed: func() error {
				return enroll.CheckSigned(dir, signer, allowed, slices.Concat(list.Wanted.DBX, h.FirmwareKeys.DBX.Content))
			},
			Pause: h.Sleep,
			Say:   func(m string) { h.Log.Say("%s", m) },
		}
		if err := e.Run(enrollments); err != nil {
			return err
		}
		return countEnrollment(h, dir)
	})
	if err != nil {
		return takeBack(h, secret, keys, list, err)
	}
	foretellAgain(h, foretold, secret, list)
	if h.State.Root == bootflow.RootOpen {
		err = h.Store.Keep(rootpart.EnrolledFile, nil)
	}
	return err
}

// enrollList returns what is to be enrolled and signed: what an enrollment that was
// cut decided, or what is decided now, and then kept together with the keys.
func enrollList(h *host.Host, secret *policy.Secret, keys *secureboot.KeySet, stored *secureboot.List) (*secureboot.List, error) {
	if h.Left.Pending != nil && !stored.Bare {
		return stored, nil
	}
	list, err := ListToEnroll(h, keys, stored)
	if err != nil {
		return nil, err
	}
	return list, keepKeys(h, secret, keys, list)
}

// countEnrollment makes firmware that forgets its keys at every restart end in
// the recovery console and not in a loop. Cut before it, one enrollment is not
// counted.
func countEnrollment(h *host.Host, dir hw.ESPDir) error {
	if h.Left.Pending == nil {
		return nil
	}
	next := *h.Left.Pending
	return succeedPending(dir, h.Left.Pending, &next)
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
func ownKeys(h *host.Host) (*policy.Secret, *secureboot.KeySet, *secureboot.List, error) {
	if h.State.Root == bootflow.RootOpen && h.Secret != nil {
		return keysInRoot(h)
	}
	if h.Left.Pending != nil {
		secret, keys, _, err := openPending(h)
		var list *secureboot.List
		if err == nil {
			list, err = firstboot.UnwrapList(secret, h.Left.Pending.Keys)
		}
		if err == nil {
			return secret, keys, list, nil
		}
		// In Setup Mode with an empty root partition nothing depends on them.
		h.Log.Say("the keys of an earlier start cannot be used (%v): making new ones", err)
		h.Left.Pending = nil
	}
	h.Released = true
	secret, err := policy.NewSecret(h.Random)
	if err != nil {
		return nil, nil, nil, err
	}
	keys, err := h.NewKeys(h.Random, h.Contract.Date())
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, nil, nil
}

// keysInRoot is ownKeys for a machine without a TPM, whose keys lie on the root
// partition from the beginning. It takes the secret over.
func keysInRoot(h *host.Host) (*policy.Secret, *secureboot.KeySet, *secureboot.List, error) {
	secret := h.Secret
	h.Secret = nil
	list, _, err := rootpart.OwnList(h.Store, secret, h.Lock, nil)
	var keys *secureboot.KeySet
	if err == nil {
		keys, err = h.StoredKeys(secret)
	}
	if err == nil && keys == nil {
		keys, err = h.NewKeys(h.Random, h.Contract.Date())
	}
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, list, nil
}

// openPending unseals what the first boot left, and returns the record that
// allowed it; nil where the TPM holds none. The caller wipes secret and keys.
func openPending(h *host.Host) (*policy.Secret, *secureboot.KeySet, *policy.Record, error) {
	if h.Chip.Err != nil {
		return nil, nil, nil, h.Chip.Err
	}
	sealed, err := h.Left.Pending.SealedSecret()
	if err != nil {
		return nil, nil, nil, err
	}
	secret, record, err := h.Chip.TPM.Unseal(sealed)
	if err != nil {
		return nil, nil, nil, err
	}
	h.Released = true
	keys, err := firstboot.UnwrapKeys(secret, h.Left.Pending.Keys)
	if err != nil {
		secret.Wipe()
		return nil, nil, nil, err
	}
	return secret, keys, record, nil
}

// keepKeys puts the private keys where only the initramfs phase of this UKI on
// this machine can read them.
func keepKeys(h *host.Host, secret *policy.Secret, keys *secureboot.KeySet, list *secureboot.List) error {
	wrapped, err := firstboot.WrapKeys(h.Random, secret, keys, list)
	if err != nil {
		return err
	}
	if h.State.Root == bootflow.RootOpen {
		h.List = list
		return rootpart.KeepKeys(h.Store, wrapped)
	}
	sealed, err := SealProvisionally(h, secret, nil)
	if err != nil {
		return err
	}
	p := &firstboot.Pending{Keys: wrapped}
	if p.Answers, err = boxAnswers(h, secret, handedOver(h)); err != nil {
		return err
	}
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
	if err := h.WriteESP(func(dir hw.ESPDir) error { return writePending(dir, text) }); err != nil {
		return err
	}
	h.Left.Pending = p
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

// SealProvisionally seals the machine secret to the initramfs phase of the
// running UKI. Where the TPM has an NV index, the object stays: it obeys whatever
// record is written there later. needed is an object whose index is not to be
// cleared meanwhile; or nil.
func SealProvisionally(h *host.Host, secret *policy.Secret, needed *policy.Sealed) (*policy.Sealed, error) {
	start, err := h.Expected()
	if err != nil {
		return nil, err
	}
	record, boots, err := start.Provisional()
	if err != nil {
		return nil, err
	}
	b := h.Binding()
	b.Needed = needed
	return b.Seal(secret, boots[0], record, boots[1:]...)
}

// checkEnforced is the check after the restart that ends an enrollment.
func checkEnforced(h *host.Host, wanted secureboot.Wanted) error {
	for _, d := range enroll.Enforced(h.FirmwareKeys, wanted) {
		return fmt.Errorf("the firmware does not enforce what was enrolled: %s", d)
	}
	return nil
}

// maySign are the files that an enrollment signs: with new keys, none that another has
// replaced.
func maySign(h *host.Host, list *secureboot.List) enroll.Allowed {
	if h.State.Root == bootflow.RootOpen && rootpart.KeysUnfinished(h.Store, h.Lock) {
		return rootpart.AllowedAnew(list)
	}
	return rootpart.Allowed(list)
}

// foretellAgain has the TPM's record be for what the firmware holds in fact after an
// enrollment that its owner has agreed to: it may keep an entry otherwise than it was
// written. Where that fails, the recovery key is asked for once more.
func foretellAgain(h *host.Host, foretold *rootpart.Start, secret *policy.Secret, list *secureboot.List) {
	if foretold == nil {
		return
	}
	if err := foretell(h, foretold, secret, list); err != nil {
		h.Log.Say("the recovery key will be asked for once more at the next start: %v", err)
	}
}

func foretell(h *host.Host, foretold *rootpart.Start, secret *policy.Secret, list *secureboot.List) error {
	now, err := enroll.Observe(h.Variables)
	if err != nil {
		return err
	}
	log, _, err := h.ReadLog()
	if err != nil {
		return err
	}
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: now.PK.Raw, KEK: now.KEK.Raw, DB: now.DB.Raw, DBX: now.DBX.Raw}
	value, err := pcr.PredictPCR7(log, vars, [][]byte{list.Wanted.DB[0].SignatureData()})
	if err != nil || value == foretold.Boot.PCR7 {
		return err
	}
	volumeKey, err := h.OpenByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	return h.RecordStart(foretold.Enrolled(value), volumeKey, secret, nil)
}

// ReadLeft reads what the first boot left for the second, the newest file
// that makes sense. None is nil, and so is an ESP that cannot be read: a machine
// in use does without, and on any other nothing is lost by starting over.
func ReadLeft(h *host.Host) error {
	h.Left = firstboot.Left{Unlocked: h.Left.Unlocked}
	err := h.ReadESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, firstboot.Directory)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		newest := -1
		for _, e := range entries {
			h.Left.Unlocked = h.Left.Unlocked || lastgood.Is(e.Name())
			h.Left.Marked = h.Left.Marked || strings.EqualFold(e.Name(), path.Base(firstboot.DeletionMark))
			switch {
			case isAnswers(e.Name()):
				readAnswers(h, files, e.Name())
			case isOthers(e.Name()):
				readOthers(h, files, e.Name())
			}
			n, ok := firstboot.Count(e.Name())
			if !ok {
				continue
			}
			h.Left.Keys = true
			// A file that a cut left unfinished is as good as none: it is
			// written before anything depends on it.
			text, err := bounded.File(files, path.Join(firstboot.Directory, e.Name()), firstboot.MaxSize)
			if err != nil {
				h.Log.Say("%v", err)
				continue
			}
			if p, err := firstboot.Parse(text); err == nil && n > newest {
				h.Left.Pending, newest = p, n
			}
		}
		return err
	})
	if err != nil {
		h.Log.Say("what an earlier start may have left on the ESP is not known: %v", err)
	}
	return nil
}
