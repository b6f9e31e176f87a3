package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// unlock opens the root partition with the TPM.
func (a *Agent) unlock() error {
	if a.Lock.Sealed == nil {
		return errors.New("the root partition is not bound to a TPM")
	}
	told, lerr := a.ToldBoot()
	if lerr == nil {
		if err := a.NothingForeign(told); err != nil {
			return err
		}
	}
	last := a.LastGood(nil)
	var known []policy.Boot // they only help to say which register differs
	if last != nil {
		if b, err := rootpart.Logged(last.Log); err == nil {
			known = append(known, b)
		}
	}
	secret, record, err := a.Chip.TPM.Unseal(a.Lock.Sealed, known...)
	if err != nil {
		a.observeReplaced(err)
		return a.explain(err, last)
	}
	a.Released = true
	defer a.keepOnlyOpen(secret)
	if lerr != nil || !a.Proven(told, record) {
		if err := a.NothingForeignNow(); err != nil {
			return err
		}
	}
	volumeKey, err := a.OpenByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	complete, err := a.completion(record, secret, volumeKey)
	if err != nil {
		return err
	}
	// Whatever volume this is, the secret is not unsealed again in this boot.
	if err := a.CapVolume(volumeKey); err != nil {
		return err
	}
	if err := a.MayOpen(record, volumeKey); err != nil {
		return err
	}
	if err := a.OpenRoot(a.Lock, volumeKey, false); err != nil {
		return err
	}
	// Nothing is written by a secret, to the disk or to the TPM, before this.
	if err := rootpart.CheckSecret(a.Store, secret, a.FirmwareKeys, a.Contract.SecureBoot); err != nil {
		return errors.Join(err, a.CloseRoot())
	}
	if record, err = complete(); err != nil {
		return errors.Join(err, a.CloseRoot())
	}
	settled := a.finishSecret(volumeKey, secret)
	if record != nil {
		a.State.Floor = record.Floor
	}
	if err := a.checkFloor(true, record, secret); err != nil {
		return errors.Join(err, a.CloseRoot())
	}
	a.State.Root, a.Record, a.Secret = slot.RootOpen, record, secret
	a.HealHeader()
	a.lookForList(secret)
	if settled {
		a.finishKeys(volumeKey, secret, a.Admits(volumeKey, secret))
		a.renewList(secret, record)
	}
	a.afterUnlock()
	return nil
}

// finishSecret finishes a replacement of the machine secret, before anything is read
// that is under it. Where that fails, what can be read is, and the next boot tries again:
// until then the Secure Boot keys and their list may be under the other secret, which is no
// damage and wants no cure.
func (a *Agent) finishSecret(volumeKey []byte, secret *policy.Secret) (settled bool) {
	chip := a.Chip.TPM
	if a.Chip.Err != nil {
		chip = nil
	}
	if err := rootpart.FinishSecret(a.Machine, a.Disk, a.Random, chip, a.Lock, volumeKey, secret); err != nil {
		a.Log.Say("the replacement of the machine secret was not finished, and the next start goes on with it: %v", err)
		a.Unsettled = true
		return false
	}
	return true
}

// lookForList takes the list where it can be read although the replacement of the secret is
// not finished: what is left to do may not concern it.
func (a *Agent) lookForList(secret *policy.Secret) {
	if !a.Unsettled {
		return
	}
	if list, damaged, err := rootpart.OwnList(a.Store, secret, a.Lock, &a.FirmwareKeys); err == nil && damaged == nil {
		a.List = list
	}
}

// keepOnlyOpen wipes a machine secret that has not opened the root partition.
// The one that has is needed until the boot hands over: to stage a release and
// to write the TPM's record.
func (a *Agent) keepOnlyOpen(secret *policy.Secret) {
	if secret != nil && a.Secret != secret {
		secret.Wipe()
	}
}

// completion returns what is left to do with the TPM's record: nothing, or,
// where making the root partition was cut right before its last step, that one.
func (a *Agent) completion(record *policy.Record, secret *policy.Secret, volumeKey []byte) (func() (*policy.Record, error), error) {
	if record == nil || !record.Provisional() {
		return func() (*policy.Record, error) { return record, nil }, nil
	}
	start, err := a.Expected()
	if err != nil {
		return nil, fmt.Errorf("complete the TPM's record: %w", err)
	}
	return func() (*policy.Record, error) { return a.recordVolume(secret, a.Lock.Sealed, start, volumeKey) }, nil
}

// afterUnlock keeps what explains a later failure, and removes what the first
// boot left. Neither is worth a boot.
func (a *Agent) afterUnlock() {
	if err := a.keepLog(a.Secret); err != nil {
		a.Log.Say("the event log of this boot was not kept: %v", err)
	}
	a.tidyUp()
}

// observeReplaced asks the TPM's record what it has of a system that it does not unlock
// for: an old one that was replaced for good explains itself by that.
func (a *Agent) observeReplaced(err error) {
	if _, mismatch := errors.AsType[*tpm.MismatchError](err); !mismatch {
		return
	}
	if record, err := a.Chip.TPM.ReadRecord(a.Lock.Sealed); err == nil {
		a.State.Floor, a.facts.Replaced = record.Floor, record.Replaced(uint64(a.Contract.Version))
	}
}

// explain says why the TPM refused, for the person at the machine.
func (a *Agent) explain(err error, last *lastgood.Log) error {
	if _, mismatch := errors.AsType[*tpm.MismatchError](err); !mismatch {
		return err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%v", err)
	now, _, lerr := a.ReadLog()
	switch {
	case lerr != nil:
		fmt.Fprintf(&out, "\nwhat changed is not known: %v", lerr)
	default:
		fmt.Fprintf(&out, "\n%s", strings.TrimRight(lastgood.Explain(last, now), "\n"))
	}
	return errors.New(out.String())
}

// keepLog keeps this boot's event log where it differs from the last one in a
// PCR that matters. The new file is there before the old one goes.
func (a *Agent) keepLog(secret *policy.Secret) error {
	now, raw, err := a.ReadLog()
	if err != nil {
		return err
	}
	if last := a.LastGood(secret); last != nil && last.Authentic && len(lastgood.Differences(last.Log, now)) == 0 {
		return nil
	}
	return a.WriteESP(func(dir hw.ESPDir) error {
		if err := dir.MakeDirectory(firstboot.Directory); err != nil {
			return err
		}
		names, err := dir.List(firstboot.Directory)
		if err != nil {
			return err
		}
		var old []string
		fresh := lastgood.Fresh(a.Now(), secret, raw)
		for _, n := range names {
			if full := path.Join(firstboot.Directory, n.Name); lastgood.Is(n.Name) && full != fresh {
				old = append(old, full)
			}
		}
		return enroll.Replace(dir, fresh, raw, old...)
	})
}

// tidyUp removes what the first boot left on the ESP. Whoever finds it in free
// space has nothing: its NV index is gone, or, where the TPM had no room for a second
// one or for any, its starts are over before long. It is not worth a boot: what stays is
// removed at the next one.
func (a *Agent) tidyUp() {
	if !a.leftovers && a.pending == nil {
		return
	}
	if err := a.WriteESP(func(dir hw.ESPDir) error { return removeFiles(dir, isPending) }); err != nil {
		a.Log.Say("%s on the ESP was not tidied up: %v", firstboot.Directory, err)
		return
	}
	a.pending, a.leftovers = nil, false
}

// keyTimeout is how long the console waits for a recovery key before it becomes
// the recovery console, and trialKeyTimeout how long a trial does before it makes way
// for the system that ran before it. Each of its tries waits so long: it is time enough
// to type a key, and short enough for a machine that nobody is at.
const (
	keyTimeout      = 10 * time.Minute
	trialKeyTimeout = 2 * time.Minute
)

// askKey opens the root partition with the recovery key. Every try costs the
// keyslot's key derivation, and nothing else.
func (a *Agent) askKey() error {
	if err := a.NothingForeignNow(); err != nil {
		return err
	}
	limit, err := a.KeyLimit()
	if err != nil {
		return err
	}
	c, err := a.Person.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := a.Disks.OpenPartition(a.Disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.Lock.ReadRecovery(f); err != nil {
		return err
	}
	timeout := keyTimeout
	if a.State.Trial && a.State.Fallback && a.facts.Unlock == slot.Failed {
		timeout = trialKeyTimeout
		c.Print(fmt.Sprintf("\nThis system is on trial. If nobody answers within %d minutes the machine restarts, and goes back to the system before it once the tries are used up.\n", timeout/time.Minute))
	}
	if a.Chip.Err != nil && !errors.Is(a.Chip.Err, tpm.ErrAbsent) {
		rootpart.BeforeKey(c, a.Chip.Err)
	}
	for {
		typed, err := c.AskKey("\nRecovery key (an empty line opens the recovery console): ", a.Lock.Checks(), timeout)
		if err != nil {
			return err
		}
		if len(typed) == 0 {
			a.facts.Answered = true
			return errors.New("no recovery key was given")
		}
		a.Released = true // a key with one wrong letter tells most of the right one
		volumeKey, secret, err := a.Lock.OpenRecovery(f, typed, limit)
		luks2.Wipe(typed)
		if err != nil {
			c.Print(fmt.Sprintf("%v. Nothing is lost: try again.\n", err))
			continue
		}
		return a.openTyped(c, f, volumeKey, secret)
	}
}

// openTyped goes on with a volume that a recovery key opened. It wipes the volume
// key, and the secret when it fails.
//
// Whoever puts a volume of their own in place of the real one knows its recovery
// key, and could have the system that starts with it ask for the real one: so the volume
// has to be this machine's here, too.
func (a *Agent) openTyped(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	defer luks2.Wipe(volumeKey)
	defer a.keepOnlyOpen(secret)
	if err := rootpart.MayOpenTyped(a.Lock, volumeKey, a.FirmwareKeys, a.Contract); err != nil {
		return err
	}
	if err := a.OpenRoot(a.Lock, volumeKey, false); err != nil {
		return err
	}
	settled := a.finishSecret(volumeKey, secret)
	err := rootpart.MadeHere(a.Store, a.Lock, secret, a.FirmwareKeys, a.Contract)
	if err == nil {
		err = a.checkFloor(false, nil, secret)
	}
	if err != nil {
		return errors.Join(err, a.CloseRoot())
	}
	if err := a.goOnUntold(c); err != nil {
		return errors.Join(err, a.CloseRoot())
	}
	a.restoreList(secret)
	if err := a.offerKeys(c, f, volumeKey, secret); err != nil {
		c.Print(fmt.Sprintf("the firmware's keys were left as they are: %v\n", err))
	}
	if a.Chip.Err == nil && !a.facts.EnrollAgain && a.facts.Enroll != slot.Done {
		switch err := a.offerAccept(c, f, volumeKey, secret); {
		case errors.Is(err, errAccepted):
			c.Print(fmt.Sprintf("%v\n", err))
		case err != nil:
			c.Print(fmt.Sprintf("the TPM was left as it is: %v\n", err))
		}
	}
	if settled && !a.facts.EnrollAgain {
		a.finishAccepted(volumeKey, secret)
	}
	if err := a.CapVolume(volumeKey); err != nil {
		return err
	}
	a.State.Root, a.Secret = slot.RootOpen, secret
	return nil
}

// unenrolled reports whether an enrollment of keys that lie on the root partition
// alone has not come to its end.
func (a *Agent) unenrolled() bool {
	_, err := a.Store.Read(rootpart.EnrolledFile, 0)
	return errors.Is(err, fs.ErrNotExist)
}

// offerAccept lets the owner accept the machine as it is now: by one write of
// the record, or, where the TPM was cleared or is another, by sealing again.
func (a *Agent) offerAccept(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	list, _, err := rootpart.OwnList(a.Store, secret, a.Lock, &a.FirmwareKeys)
	if err != nil {
		return err
	}
	if err := rootpart.MayAccept(a.FirmwareKeys, a.Contract.SecureBoot, a.Lock, list); err != nil {
		return err
	}
	if now, _, err := a.ReadLog(); err == nil {
		c.Print(lastgood.Explain(a.LastGood(secret), now))
	}
	yes, err := hw.AskYes(c, "Accept this machine as it is now, so that it opens by itself from the next start on?\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware).", keyTimeout)
	if err != nil || !yes {
		return err
	}
	start, err := a.Measured()
	if err != nil {
		return err
	}
	b := a.Binding()
	b.Seen = func(old *policy.Record) bool { return start.Seen(old, a.LastGoodLog(secret)) }
	return a.accept(c, f, b, volumeKey, secret, start)
}

// errAccepted is what failed once the TPM had been told.
var errAccepted = errors.New("the TPM has accepted this machine, but not all that goes with it was written (the next start may ask for the recovery key again)")

// accept lets the TPM open the root partition for boots that start so.
//
// What the machine has is noted first, as far as it is more, and last, as far as it is
// less: a cut leaves a machine whose owner is asked once more at most. Neither the note nor
// the keyslot waits for the other: one that fails does not keep the other from being
// written.
func (a *Agent) accept(c hw.Console, f hw.File, b rootpart.Binding, volumeKey []byte, secret *policy.Secret, start *rootpart.Start) error {
	b.Had, b.Consent, b.Enforces, b.Older = rootpart.Had(a.Had, a.Lock), a.weaker(c), start.SecureBoot, start.Older(a.List, a.LastGoodLog(secret))
	record, boots, err := a.Acceptable(b, start, volumeKey, secret)
	if err != nil {
		return err
	}
	accepted, err := b.Accept(a.Lock, secret, record)
	if err != nil {
		return err
	}
	if accepted {
		a.Record = record
		a.NoteSelf(journal.Accepted, "somebody with the recovery key accepted the machine as it is")
		err := errors.Join(a.Guarantee(b.Now(record, a.Lock), secret), rootpart.OpensByTPM(a.Random, f, a.Lock, volumeKey, secret))
		if err != nil {
			return fmt.Errorf("%w: %w", errAccepted, err)
		}
		c.Print("Accepted.\n")
		return nil
	}
	keys, err := a.StoredKeys(secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	if err := b.Rebind(a.Random, f, a.Lock, volumeKey, secret, keys, boots[0], record, boots[1:]...); err != nil {
		return err
	}
	c.Print("Bound to this TPM.\n")
	a.NoteSelf(journal.Accepted, "somebody with the recovery key bound the machine to this TPM")
	if err := a.Guarantee(b.Now(record, a.Lock), secret); err != nil {
		return fmt.Errorf("%w: %w", errAccepted, err)
	}
	return nil
}

// showRecoveryKey shows the key on the screen, or where there is none on every
// console, once, and nowhere else.
func (a *Agent) showRecoveryKey(key *luks2.RecoveryKey) error {
	c, err := a.Person.Open()
	if err != nil {
		return fmt.Errorf("the recovery key cannot be shown: %w", err)
	}
	defer c.Close()
	text := key.Passphrase()
	defer luks2.Wipe(text)
	drawn, err := console.QR(string(text))
	if err != nil {
		return err
	}
	c.PrintSecret("\n" + drawn + "\nThis machine's RECOVERY KEY:\n\n    " + string(text) + "\n\n" + keepKey)
	_, err = c.Ask("Press Enter when you have written it down (or wait a minute). ", false, time.Minute)
	if err != nil && !errors.Is(err, hw.ErrNobody) {
		return err
	}
	c.Print("\033[H\033[2J\033[3J") // and off the screen
	return nil
}

// keepKey is what the machine cannot do for its owner.
const keepKey = `Write it down and keep it away from this machine. It is shown this once. It opens
your data when the TPM does not: after a firmware update, with a new mainboard.
Set a password in the firmware's setup. Without one, somebody with the machine
in hand can switch Secure Boot off. That opens nothing, since the TPM then keeps
the key; but a system could start that looks like yours and asks for what you
type.
`
