// Package unlock opens the root partition: by the TPM, or by the recovery key that somebody
// types. With it goes what only the one who has the key may decide: that the machine is
// accepted as it is now, that the firmware gets this machine's keys again, and that the
// machine secret is replaced.
//
// It refuses a volume that is not this machine's, and a boot with something in it that did
// not come from the UKI.
package unlock

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
	"halogenos.internal/initagent/tpm"
)

// Result is what a boot has to know of an opening, whether or not it has failed.
type Result struct {
	// Replaced: the running system was replaced for good.
	Replaced bool
	// Answered: somebody was at the prompt for the recovery key, and wants the console; or
	// the TPM admits this boot, and only the PIN is wanting.
	Answered bool
	// EnrollAgain: the owner wants the firmware to get the keys that lie on the root partition.
	EnrollAgain bool
	// KeysWritten: the firmware was given new Secure Boot keys.
	KeysWritten bool
	// Renewed: the machine secret was replaced, or may have been, since the PIN was
	// forgotten. Nothing may be written by either before the next start.
	Renewed bool
	// Foretold is what the TPM was told of the start after the enrollment; or nil.
	Foretold *rootpart.Start
}

// An opening is one attempt to open the root partition.
type opening struct {
	*host.Host
	tried bootflow.Facts // what this boot has done before
	Result
}

// ByTPM opens the root partition with the TPM.
func ByTPM(h *host.Host) (Result, error) {
	o := &opening{Host: h}
	return o.end(o.byTPM())
}

// ByPIN opens the root partition with the TPM and a PIN that somebody types.
func ByPIN(h *host.Host) (Result, error) {
	o := &opening{Host: h}
	return o.end(o.byPIN())
}

// ByKey opens the root partition with the recovery key. tried is what this boot has done.
func ByKey(h *host.Host, tried bootflow.Facts) (Result, error) {
	o := &opening{Host: h, tried: tried, Result: Result{Answered: tried.Answered}}
	return o.end(o.byKey())
}

func (o *opening) end(err error) (Result, error) {
	o.Replaced = o.Replaced || errors.Is(err, rootpart.ErrReplaced)
	return o.Result, err
}

func (o *opening) byTPM() error {
	switch {
	case o.Lock.Strange != nil:
		return fmt.Errorf("what the root partition's header says of the TPM is not understood: %w", o.Lock.Strange)
	case o.Lock.Sealed == nil:
		return errors.New("the root partition is not bound to a TPM")
	}
	return o.released(func(known []policy.Boot) (*policy.Secret, *policy.Record, error) {
		return o.Chip.TPM.Unseal(o.Lock.Sealed, known...)
	})
}

// released goes on with what the TPM releases to unseal.
func (o *opening) released(unseal func(known []policy.Boot) (*policy.Secret, *policy.Record, error)) error {
	told, lerr := o.ToldBoot()
	if lerr == nil {
		if err := o.NothingForeign(told); err != nil {
			return err
		}
	}
	last := o.LastGood(nil)
	var known []policy.Boot // they only help to say which register differs
	if last != nil {
		if b, err := rootpart.Logged(last.Log); err == nil {
			known = append(known, b)
		}
	}
	secret, record, err := unseal(known)
	if err != nil {
		o.observeReplaced(err)
		return o.explain(err, last)
	}
	o.Released = true
	defer o.keepOnlyOpen(secret)
	if lerr != nil || !o.Proven(told, record) {
		if err := o.NothingForeignNow(); err != nil {
			return err
		}
	}
	volumeKey, err := o.OpenByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	complete, err := o.completion(record, secret, volumeKey)
	if err != nil {
		return err
	}
	// Whatever volume this is, the secret is not unsealed again in this boot.
	if err := o.CapVolume(volumeKey); err != nil {
		return err
	}
	if err := rootpart.MayOpen(o.Lock, record, volumeKey, o.FirmwareKeys, o.Contract.SecureBoot); err != nil {
		return err
	}
	if err := o.OpenRoot(o.Lock, volumeKey, false); err != nil {
		return err
	}
	// Nothing is written by a secret, to the disk or to the TPM, before this.
	if err := rootpart.CheckSecret(o.Store, secret, o.FirmwareKeys, o.Contract.SecureBoot); err != nil {
		return errors.Join(err, o.CloseRoot())
	}
	if record, err = complete(); err != nil {
		return errors.Join(err, o.CloseRoot())
	}
	settled := o.finishSecret(volumeKey, secret)
	if record != nil {
		o.State.Floor = record.Floor
	}
	if err := o.CheckFloor(true, record, secret); err != nil {
		return errors.Join(err, o.CloseRoot())
	}
	o.State.Root, o.Record, o.Secret = bootflow.RootOpen, record, secret
	o.HealHeader()
	o.keepPIN(volumeKey)
	prompt.Settle(o.Host, secret)
	o.keepCounting(volumeKey)
	o.lookForList(secret)
	if settled {
		o.finishKeys(volumeKey, secret, o.Admits(volumeKey, secret))
		o.renewList(secret, record)
	}
	o.afterUnlock()
	return nil
}

// finishSecret finishes a replacement of the machine secret, before anything is read
// that is under it. Where that fails, what can be read is, and the next boot tries again:
// until then the Secure Boot keys and their list may be under the other secret, which is no
// damage and wants no cure.
func (o *opening) finishSecret(volumeKey []byte, secret *policy.Secret) (settled bool) {
	chip := o.Chip.TPM
	if o.Chip.Err != nil {
		chip = nil
	}
	if err := rootpart.FinishSecret(rootpart.Volume{Machine: o.Machine, Disk: o.Disk, Random: o.Random, Lock: o.Lock, Key: volumeKey}, chip, secret); err != nil {
		o.Log.Say("the replacement of the machine secret was not finished, and the next start goes on with it: %v", err)
		o.Unsettled = true
		return false
	}
	return true
}

// lookForList takes the list where it can be read although the replacement of the secret is
// not finished: what is left to do may not concern it.
func (o *opening) lookForList(secret *policy.Secret) {
	if !o.Unsettled {
		return
	}
	if list, damaged, err := rootpart.OwnList(o.Store, secret, o.Lock, &o.FirmwareKeys); err == nil && damaged == nil {
		o.List = list
	}
}

// keepOnlyOpen wipes a machine secret that has not opened the root partition.
// The one that has is needed until the boot hands over: to stage a release and
// to write the TPM's record.
func (o *opening) keepOnlyOpen(secret *policy.Secret) {
	if secret != nil && o.Secret != secret {
		secret.Wipe()
	}
}

// completion returns what is left to do with the TPM's record: nothing, or,
// where making the root partition was cut right before its last step, that one.
func (o *opening) completion(record *policy.Record, secret *policy.Secret, volumeKey []byte) (func() (*policy.Record, error), error) {
	if record == nil || !record.Provisional() {
		return func() (*policy.Record, error) { return record, nil }, nil
	}
	start, err := o.Expected()
	if err != nil {
		return nil, fmt.Errorf("complete the TPM's record: %w", err)
	}
	return func() (*policy.Record, error) {
		return setup.RecordVolume(o.Host, secret, o.Lock.Sealed, start, volumeKey)
	}, nil
}

// afterUnlock keeps what explains a later failure, and removes what the first
// boot left. Neither is worth a boot.
func (o *opening) afterUnlock() {
	if err := o.KeepLog(o.Secret); err != nil {
		o.Log.Say("the event log of this boot was not kept: %v", err)
	}
	setup.TidyUp(o.Host)
}

// observeReplaced asks the TPM's record what it has of a system that it does not unlock
// for: an old one that was replaced for good explains itself by that.
func (o *opening) observeReplaced(err error) {
	if _, mismatch := errors.AsType[*tpm.MismatchError](err); !mismatch {
		return
	}
	if record, err := o.Chip.TPM.ReadRecord(o.Lock.Sealed); err == nil {
		o.State.Floor, o.Replaced = record.Floor, record.Replaced(uint64(o.Contract.Version))
	}
}

// explain says why the TPM refused, for the person at the machine.
func (o *opening) explain(err error, last *lastgood.Log) error {
	prompt.Refused(o.Host, err)
	if _, mismatch := errors.AsType[*tpm.MismatchError](err); !mismatch {
		return err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%v", err)
	now, _, lerr := o.ReadLog()
	switch {
	case lerr != nil:
		fmt.Fprintf(&out, "\nwhat changed is not known: %v", lerr)
	default:
		fmt.Fprintf(&out, "\n%s", strings.TrimRight(lastgood.Explain(last, now), "\n"))
	}
	return errors.New(out.String())
}

// KeyTimeout is how long the console waits for a recovery key before it becomes
// the recovery console, and TrialKeyTimeout how long a trial does before it makes way
// for the system that ran before it. Each of its tries waits so long: it is time enough
// to type a key, and short enough for a machine that nobody is at.
const (
	KeyTimeout      = 10 * time.Minute
	TrialKeyTimeout = 2 * time.Minute
)

// byKey asks for the recovery key. Every try costs the
// keyslot's key derivation, and nothing else.
func (o *opening) byKey() error {
	if err := o.NothingForeignNow(); err != nil {
		return err
	}
	limit, err := o.KeyLimit()
	if err != nil {
		return err
	}
	c, err := prompt.Open(o.Host)
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := o.Disks.OpenPartition(o.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := o.Lock.ReadRecovery(f); err != nil {
		return err
	}
	timeout := KeyTimeout
	if o.State.Trial && o.State.Fallback && o.tried.Came(bootflow.Unlock) == bootflow.Failed && !o.tried.Answered {
		timeout = TrialKeyTimeout
		c.Print(o.Language.Say(words.OnTrial, timeout/time.Minute))
	}
	if o.Chip.Err != nil && !errors.Is(o.Chip.Err, tpm.ErrAbsent) {
		rootpart.BeforeKey(c, o.Chip.Err)
	}
	for {
		typed, err := c.AskKey(o.Language.Text(words.AskKey), o.Lock.Checks(), timeout)
		if err != nil {
			return err
		}
		if len(typed) == 0 {
			o.Answered = true
			return errors.New("no recovery key was given")
		}
		o.Released = true // a key with one wrong letter tells most of the right one
		key, volumeKey, secret, err := o.Lock.OpenRecoveryKey(f, typed, limit)
		luks2.Wipe(typed)
		if err != nil {
			c.Print(o.Language.Say(words.TryAgain, err))
			continue
		}
		defer key.Wipe()
		defer luks2.Wipe(volumeKey)
		o.Answered = false // it is open: what comes now is the system's
		forgotten := o.forgotten()
		if err := o.openTyped(c, f, volumeKey, secret, forgotten); err != nil || !forgotten {
			return err
		}
		if err := o.offerPIN(c, key, volumeKey); err != nil {
			c.Print(o.Language.Say(words.PINUnchanged, err))
		}
		return nil
	}
}

// openTyped goes on with a volume that a recovery key opened. It wipes the secret when it
// fails. Where only the PIN is forgotten there is nothing of the machine to accept.
//
// Anyone who puts a volume of their own in place of the real one knows its recovery
// key, and could have the system that starts with it ask for the real one: so the volume
// has to be this machine's here, too.
func (o *opening) openTyped(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret, forgotten bool) error {
	defer o.keepOnlyOpen(secret)
	if err := rootpart.MayOpenTyped(o.Lock, volumeKey, o.FirmwareKeys, o.Contract); err != nil {
		return err
	}
	if err := o.OpenRoot(o.Lock, volumeKey, false); err != nil {
		return err
	}
	settled := o.finishSecret(volumeKey, secret)
	err := rootpart.MadeHere(o.Store, o.Lock, secret, o.FirmwareKeys, o.Contract)
	if err == nil {
		err = o.CheckFloor(false, nil, secret)
	}
	if err != nil {
		return errors.Join(err, o.CloseRoot())
	}
	if err := o.goOnUntold(c); err != nil {
		return errors.Join(err, o.CloseRoot())
	}
	o.restoreList(secret)
	c.Print(prompt.Typed(o.Host, secret))
	if err := o.offerKeys(c, f, volumeKey, secret); err != nil {
		c.Print(o.Language.Say(words.FirmwareUnchanged, err))
	}
	if !forgotten && o.Chip.Err == nil && !o.EnrollAgain && o.tried.Came(bootflow.Enroll) != bootflow.Done && !o.KeysWritten {
		switch err := o.offerAccept(c, f, volumeKey, secret); {
		case errors.Is(err, errAccepted):
			c.Print(o.Language.Error(err) + "\n")
		case err != nil:
			c.Print(o.Language.Say(words.TPMUnchanged, err))
		}
	}
	if settled && !o.EnrollAgain {
		o.finishAccepted(volumeKey, secret)
	}
	o.keepCounting(volumeKey)
	o.forgive(volumeKey)
	if err := o.CapVolume(volumeKey); err != nil {
		return err
	}
	if err := recoverykey.Used(o.Store, o.Lock.Typed()); err != nil {
		o.Log.Say("that the recovery key was typed was not noted: %v", err)
	}
	o.State.Root, o.Secret = bootflow.RootOpen, secret
	return nil
}

// unenrolled reports whether an enrollment of keys that lie on the root partition
// alone has not come to its end.
func (o *opening) unenrolled() bool {
	_, err := o.Store.Read(rootpart.EnrolledFile, 0)
	return errors.Is(err, fs.ErrNotExist)
}

// offerAccept lets the owner accept the machine as it is now: by one write of
// the record, or, where the TPM was cleared or is another, by sealing again.
func (o *opening) offerAccept(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	list, _, err := rootpart.OwnList(o.Store, secret, o.Lock, &o.FirmwareKeys)
	if err != nil {
		return err
	}
	if err := rootpart.MayAccept(o.FirmwareKeys, o.Contract.SecureBoot, o.Lock, list); err != nil {
		return err
	}
	if now, _, err := o.ReadLog(); err == nil {
		c.Print(lastgood.Explain(o.LastGood(secret), now))
	}
	yes, err := hw.AskYes(c, o.Language.Text(words.AskAccept), KeyTimeout)
	if err != nil || !yes {
		return err
	}
	start, err := o.Measured()
	if err != nil {
		return err
	}
	b := o.Binding()
	b.Seen = func(old *policy.Record) bool { return start.Seen(old, o.LastGoodLog(secret)) }
	return o.accept(c, f, b, volumeKey, secret, start)
}

// errAccepted is what failed once the TPM had been told.
var errAccepted = words.Errorf(words.AcceptedInPart)

// accept lets the TPM open the root partition for boots that start so.
//
// What the machine has is noted first, as far as it is more, and last, as far as it is
// less: a cut leaves a machine whose owner is asked once more at most. Neither the note nor
// the keyslot waits for the other: one that fails does not keep the other from being
// written.
func (o *opening) accept(c hw.Console, f hw.File, b rootpart.Binding, volumeKey []byte, secret *policy.Secret, start *rootpart.Start) error {
	b.Had, b.Consent, b.Enforces, b.Older = rootpart.Had(o.Had, o.Lock, secret), o.weaker(c), start.SecureBoot, start.Older(o.List, o.LastGoodLog(secret))
	record, boots, err := o.Acceptable(b, start, volumeKey, secret)
	if err != nil {
		return err
	}
	accepted, err := b.Accept(o.Lock, secret, record)
	if err != nil {
		return err
	}
	if accepted {
		o.Record = record
		o.NoteSelf(journal.Accepted, "somebody with the recovery key accepted the machine as it is")
		err := errors.Join(o.Guarantee(b.Now(record, o.Lock), secret), rootpart.OpensByTPM(o.Random, f, o.Lock, volumeKey, secret))
		if err != nil {
			return words.Errorf("%w: %w", errAccepted, err) // the first is shown in the language
		}
		c.Print(o.Language.Text(words.Accepted))
		return nil
	}
	keys, err := o.StoredKeys(secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	if err := b.Rebind(o.Random, f, o.Lock, rootpart.Rebinding{VolumeKey: volumeKey, Secret: secret, Keys: keys, Record: record, Boots: boots}); err != nil {
		return err
	}
	c.Print(o.Language.Text(words.Bound))
	o.NoteSelf(journal.Accepted, "somebody with the recovery key bound the machine to this TPM")
	if err := o.Guarantee(b.Now(record, o.Lock), secret); err != nil {
		return words.Errorf("%w: %w", errAccepted, err) // the first is shown in the language
	}
	return nil
}
