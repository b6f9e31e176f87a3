package unlock

import (
	"errors"
	"io/fs"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

const (
	// SecretTimeout is how long the recovery key is waited for, and secretTries how
	// often it may be mistyped, before the system starts without a new secret.
	SecretTimeout = 2 * time.Minute
	secretTries   = 3
)

// A renewal replaces the machine secret, as was asked for.
type renewal struct {
	opening
	wish *nextboot.NewSecret
}

// NewSecret makes a new machine secret, which the running system has asked for, if
// somebody types the recovery key. Anyone else who is root there gains the question: the
// request says nothing but what is asked for, it was taken away before, and only a person
// with the recovery key has it carried out. No shell opens in this boot: it restarts, or
// the verified system takes over.
//
// An error means that nothing was changed. Once the header was written to, it is none:
// the machine starts again, and the next boot finishes it or takes it back (see package
// rootpart).
func NewSecret(h *host.Host, wish *nextboot.NewSecret) error {
	o := &renewal{opening{Host: h}, wish}
	start, refused := o.mayRenew()
	c, err := prompt.Open(h)
	if err != nil {
		return errors.Join(refused, err)
	}
	defer c.Close()
	what, command := o.asked()
	if refused != nil { // who restarted for it is in front of the screen, and not of the log
		return refuse(c, o.Language.Say(words.WishRefused, what, command), refused)
	}
	c.Print(o.Language.Say(words.SecretAsked, what, command))
	key, volumeKey, err := o.typedKey(c)
	if err != nil {
		return err
	}
	defer key.Wipe()
	defer luks2.Wipe(volumeKey)
	var pin *policy.PIN
	if o.wish.PIN == nextboot.SetPIN {
		if pin, err = o.newPIN(c, o.shortestPIN(c, volumeKey)); err != nil {
			return err
		}
		defer pin.Wipe()
	}
	replaced, err := o.replaceSecret(start, key, volumeKey, pin)
	switch {
	case err != nil && !replaced:
		return refuse(c, o.Language.Text(words.NothingChanged), err)
	case err != nil:
		o.Log.Say("the next start finishes it or takes it back: %v", err)
		_ = refuse(c, o.Language.Text(words.SecretGoesOn), err)
		return nil
	}
	c.Print(o.done())
	if o.wish.PIN == nextboot.RemovePIN {
		auth := policy.LockoutAuth(volumeKey)
		defer clear(auth)
		if err := o.Chip.TPM.UncountPINs(auth); err != nil {
			o.Log.Say("%v", err)
		}
	}
	if o.wish.Keys {
		k := o.KeyChange(volumeKey, o.Secret, o.Admits(volumeKey, o.Secret))
		if _, err := k.Finish(nil); err != nil {
			o.Log.Say("the machine secret is a new one; of the Secure Boot keys: %v", err)
		}
	}
	return nil
}

// refuse says why what was asked for is not done, and waits until somebody has read it: the
// system comes next, and takes the screen.
func refuse(c hw.Console, what string, why error) error {
	c.Print(c.Language().Say(words.Because, what, why))
	_, err := c.Ask(c.Language().Text(words.PressEnter), false, SecretTimeout)
	if err != nil && !errors.Is(err, hw.ErrNobody) {
		return errors.Join(why, err)
	}
	return why
}

// asked is what was asked for, and by which of halogenctl's commands.
func (o *renewal) asked() (what, command string) {
	switch {
	case o.wish.PIN == nextboot.SetPIN:
		return o.Language.Text(words.WishPIN), "pin set"
	case o.wish.PIN == nextboot.RemovePIN:
		return o.Language.Text(words.WishNoPIN), "pin remove"
	case o.wish.Keys:
		return o.Language.Text(words.WishKeys), "reseal --new-secret"
	}
	return o.Language.Text(words.WishSecret), "reseal --new-secret"
}

func (o *renewal) done() string {
	switch o.wish.PIN {
	case nextboot.SetPIN:
		return o.Language.Text(words.PINSet)
	case nextboot.RemovePIN:
		return o.Language.Text(words.PINRemoved)
	}
	return o.Language.Text(words.SecretMade)
}

// mayRenew is all that can be known before somebody is asked.
func (o *renewal) mayRenew() (*rootpart.Start, error) {
	if o.Lock == nil || len(o.Lock.Recoveries) != 1 {
		return nil, rootlock.ErrTwoKeys
	}
	if rootpart.KeysUnfinished(o.Store, o.Lock) {
		return nil, words.Errorf(words.KeysUnfinished)
	}
	if o.wish.Keys && (o.List == nil || !o.OwnEnforced()) {
		return nil, words.Errorf(words.NoOwnKeys)
	}
	switch {
	case o.wish.PIN == nextboot.RemovePIN && !o.Lock.HasPIN():
		return nil, words.Errorf(words.HasNoPIN)
	case o.wish.PIN != "" && o.Lock.Sealed == nil:
		return nil, words.Errorf(words.PINNeedsTPM)
	case o.wish.PIN == nextboot.SetPIN && o.Lock.Sealed.Kind == policy.KindPCR:
		return nil, words.Errorf(words.PINNeedsRoom)
	}
	change := rootpart.Change{Keys: o.wish.Keys, PIN: o.wish.PIN == nextboot.SetPIN}
	check := func(files fs.FS) error { return rootpart.CheckSystems(files, o.Contract, o.Table, change) }
	if err := o.ReadESP(check); err != nil {
		return nil, err
	}
	return o.ToldStart()
}

// typedKey asks for the recovery key, and returns it with the volume key, which it opens.
// It must be for the secret that the TPM has released. The caller wipes both.
func (o *renewal) typedKey(c hw.Console) (*luks2.RecoveryKey, []byte, error) {
	limit, err := o.KeyLimit()
	if err != nil {
		return nil, nil, err
	}
	f, err := o.Disks.OpenPartition(o.Disk, layout.Root, false)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	for range secretTries {
		typed, err := c.AskKey(o.Language.Text(words.AskKeySecret), o.Lock.Checks(), SecretTimeout)
		if err != nil {
			return nil, nil, err
		}
		if len(typed) == 0 {
			break
		}
		key, volumeKey, secret, err := o.Lock.OpenRecoveryKey(f, typed, limit)
		luks2.Wipe(typed)
		if err != nil {
			c.Print(o.Language.Say(words.TryAgain, err))
			continue
		}
		same := secret.Equal(o.Secret)
		secret.Wipe()
		if !same {
			key.Wipe()
			luks2.Wipe(volumeKey)
			return nil, nil, errors.New("the recovery key keeps another machine secret than the TPM")
		}
		return key, volumeKey, nil
	}
	return nil, nil, errors.New("no recovery key was given, so nothing is changed")
}

// replaceSecret replaces the secret by a new one, which this boot goes by from then on.
// replaced says that the header may be for either. With new Secure Boot keys, those come
// with it, and the record allows what PCR 7 will be. The PIN stays what it is unless the
// wish says otherwise.
func (o *renewal) replaceSecret(start *rootpart.Start, key *luks2.RecoveryKey, volumeKey []byte, pin *policy.PIN) (replaced bool, err error) {
	r := &rootpart.Replacement{Old: o.Secret, Key: key, OtherPIN: o.wish.PIN != ""}
	var also []pcr.Digest
	if o.wish.Keys {
		if r.Keys, err = o.KeyChange(volumeKey, o.Secret, nil).Begin(o.NewKeys, o.FirmwareKeys); err != nil {
			return false, err
		}
		defer r.Keys.Wipe()
		also = r.Keys.Values
	}
	b, record, boots, err := o.Composed(start, volumeKey, o.Secret, also)
	if err != nil {
		return false, err
	}
	if o.wish.PIN != "" {
		b.Had.PIN = false // what it is from now on the owner has said
	}
	if err := b.MaySucceed(o.Lock, o.Secret, record); err != nil {
		return false, err
	}
	if r.Fresh, err = policy.NewSecret(o.Random); err != nil {
		return false, err
	}
	defer r.Fresh.Wipe()
	r.Fresh.SetPIN(pin)
	volume := rootpart.Volume{Machine: o.Machine, Disk: o.Disk, Random: o.Random, Lock: o.Lock, Key: volumeKey}
	now, replaced, err := b.ReplaceSecret(volume, r, record, boots)
	if err != nil {
		return replaced, err
	}
	*o.Secret = *r.Fresh
	o.Record, o.Had = record, now
	return true, rootpart.FinishSecret(volume, o.Chip.TPM, r.Fresh)
}
