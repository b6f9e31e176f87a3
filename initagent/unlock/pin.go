package unlock

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// errNoPIN leads to the recovery key, and errEmpty to the same question once more: a line
// that makes noise sends line ends, and nobody has typed anything.
var (
	errNoPIN = errors.New("no PIN was given")
	errEmpty = errors.New("an empty line")
)

// byPIN asks for the PIN. It waits for ever: a machine with a PIN starts when somebody is
// there, and a trial that waits has not failed.
func (o *opening) byPIN() error {
	if !o.Lock.HasPIN() {
		return errors.New("the root partition asks for no PIN")
	}
	limit, err := o.KeyLimit()
	if err != nil {
		return err
	}
	admitted := false
	err = o.released(func(known []policy.Boot) (*policy.Secret, *policy.Record, error) {
		// Where the TPM releases nothing to this boot nobody is asked in vain.
		if err := o.Chip.TPM.Admits(o.Lock.Sealed, known...); err != nil {
			return nil, nil, err
		}
		admitted = true
		c, err := prompt.Open(o.Host)
		if err != nil {
			return nil, nil, err
		}
		defer c.Close()
		c.Print(prompt.Keys(o.Host) + o.triedBefore())
		for wrong := 0; ; {
			secret, record, err := o.tryPIN(c, limit, known)
			if errors.Is(err, errEmpty) {
				continue
			}
			if !errors.Is(err, tpm.ErrWrongPIN) && !errors.Is(err, policy.ErrPINLength) {
				return secret, record, err
			}
			c.Print(o.Language.Say(words.WrongPIN, o.triesLeft(o.Language)))
			if errors.Is(err, tpm.ErrWrongPIN) {
				wrong++
			}
			if wrong == pinsAtOnce {
				if err := goOn(c); err != nil {
					return nil, nil, err
				}
				wrong = 0
			}
		}
	})
	// The TPM has nothing against this system: want of a PIN is not a failure of a trial's.
	if admitted && (errors.Is(err, errNoPIN) || errors.Is(err, tpm.ErrLockout)) {
		o.Answered = true
	}
	return err
}

// pinsAtOnce is how many wrong PINs are taken before somebody has to say that they are
// there. A modem or another machine's login at the other end of a serial line types, too,
// and would use up what the TPM takes.
const pinsAtOnce = 3

// goOn waits for somebody who wants to type on; errNoPIN is for who has none.
func goOn(c hw.Console) error {
	for {
		answer, err := c.Ask(c.Language().Text(words.ThreeWrong), false, 0)
		typed := strings.TrimSpace(string(answer))
		switch {
		case err != nil:
			return err
		case c.Language().Yes(typed):
			return nil
		case utf8.RuneCountInString(typed) == 1:
			return errNoPIN
		}
	}
}

// tryPIN asks once, and has the TPM try what was typed. What is too short for a PIN is not
// tried.
func (o *opening) tryPIN(c hw.Console, limit uint64, known []policy.Boot) (*policy.Secret, *policy.Record, error) {
	typed, err := c.Ask(o.Language.Text(words.AskPIN), true, 0)
	if err != nil {
		return nil, nil, err
	}
	defer luks2.Wipe(typed)
	switch letters := bytes.TrimSpace(typed); {
	case len(letters) == 0:
		return nil, nil, errEmpty
	case utf8.RuneCount(letters) == 1 && letters[0] > ' ': // whichever key it is on the keyboard's layout
		return nil, nil, errNoPIN
	}
	o.Released = true // a PIN with one wrong digit tells most of the right one
	pin, err := o.Lock.PIN(typed, limit)
	if err != nil {
		return nil, nil, err
	}
	defer pin.Wipe()
	secret, record, err := o.Chip.TPM.UnsealBy(o.Lock.Sealed, pin, known...)
	if errors.Is(err, tpm.ErrLockout) {
		err = fmt.Errorf("%w.%s", err, o.triesLeft(words.English))
	}
	return secret, record, err
}

// triedBefore says what the TPM has counted before this prompt: somebody else may have been
// there.
func (o *opening) triedBefore() string {
	tries, err := o.Chip.TPM.PINTries()
	switch {
	case err != nil || tries.Failed == 0:
		return ""
	case tries.Left == 0:
		return o.Language.Say(words.TriedBefore, o.triesLeft(o.Language))
	}
	return o.Language.Say(words.TriedCount, tries.Failed)
}

// triesLeft says how many wrong PINs the TPM still takes, and how long it wants to wait.
func (o *opening) triesLeft(l words.Language) string {
	tries, err := o.Chip.TPM.PINTries()
	if err != nil {
		return ""
	}
	wait := l.Text(words.AWhile)
	if tries.Wait > 0 {
		wait = inMinutes(l, tries.Wait)
	}
	if tries.Left == 0 {
		return l.Say(words.TriesNone, wait)
	}
	return l.Say(words.TriesLeft, tries.Left, wait)
}

func inMinutes(l words.Language, d time.Duration) string {
	if d < 2*time.Minute {
		return l.Say(words.InSeconds, int(d.Seconds()))
	}
	return l.Say(words.InMinutes, int((d+time.Minute-1)/time.Minute))
}

// newPINTries is how often two different PINs may be typed.
const newPINTries = 3

// uncountedPIN is how many characters a PIN has at least where the TPM's count of wrong ones
// can be set back by others: as many as they can try.
const uncountedPIN = 12

// shortestPIN has the TPM count wrong PINs, and returns how many characters a PIN has at
// least. It says why where those are more.
func (o *opening) shortestPIN(c hw.Console, volumeKey []byte) int {
	auth := policy.LockoutAuth(volumeKey)
	defer clear(auth)
	if err := o.Chip.TPM.CountPINs(auth); err != nil {
		c.Print(o.Language.Say(words.PINUncounted, err))
		return uncountedPIN
	}
	return policy.MinPIN
}

// keepCounting sees to it that the TPM goes on counting wrong PINs as it was told to,
// whatever somebody has told it since. None of it is worth a boot.
func (o *opening) keepCounting(volumeKey []byte) {
	if !o.Lock.HasPIN() || o.Chip.Err != nil {
		return
	}
	counted, err := o.Chip.TPM.PINsCounted()
	if err == nil && counted {
		return
	}
	auth := policy.LockoutAuth(volumeKey)
	defer clear(auth)
	if err == nil {
		err = o.Chip.TPM.CountPINs(auth)
	}
	if err != nil {
		o.Log.Say("WARNING: the TPM may let PINs be tried without end: use a passphrase (halogenctl pin change): %v", err)
		return
	}
	o.Log.Say("WARNING: somebody has changed how the TPM counts wrong PINs; it counts them again as it did")
}

// keepPIN has the header keep the PIN again, where it was taken out: without it, anyone who
// opens with the recovery key cannot seal with it.
func (o *opening) keepPIN(volumeKey []byte) {
	f, err := o.Disks.OpenPartition(o.Disk, layout.Root, true)
	if err == nil {
		err = errors.Join(o.Lock.KeepPIN(o.Random, f, volumeKey, o.Secret), f.Close())
	}
	if err != nil {
		o.Log.Say("%v", err)
	}
}

// forgive has the TPM forget wrong PINs, once the recovery key has opened the machine: it
// takes the right one again, or a new one, at once.
func (o *opening) forgive(volumeKey []byte) {
	if !o.Lock.HasPIN() || o.Chip.Err != nil {
		return
	}
	auth := policy.LockoutAuth(volumeKey)
	defer clear(auth)
	if err := o.Chip.TPM.ForgivePINs(auth); err != nil {
		o.Log.Say("%v", err)
	}
}

// newPIN asks for a new PIN of so many characters at least, twice. The caller wipes it.
func (o *opening) newPIN(c hw.Console, least int) (*policy.PIN, error) {
	memory, err := o.Memory()
	if err != nil {
		return nil, err
	}
	cpus := runtime.NumCPU()
	memory = rootpart.KeyMemory(memory, cpus)
	c.Print(prompt.NewKeys(o.Host))
	for range newPINTries {
		typed, err := c.Ask(o.Language.Say(words.AskNewPIN, least), true, SecretTimeout)
		if err != nil {
			return nil, err
		}
		if len(typed) == 0 {
			break
		}
		again, err := c.Ask(o.Language.Text(words.OnceMore), true, SecretTimeout)
		same := bytes.Equal(typed, again)
		luks2.Wipe(again)
		var pin *policy.PIN
		short := utf8.RuneCount(typed) < least
		if err == nil && same && !short {
			pin, err = rootlock.NewPIN(o.Random, typed, memory, cpus)
		}
		luks2.Wipe(typed)
		switch {
		case err == nil && same && short:
			c.Print(o.Language.Say(words.PINShort, least))
		case err == nil && same:
			return pin, nil
		case err == nil:
			c.Print(o.Language.Text(words.PINsDiffer))
		case errors.Is(err, policy.ErrPINLength):
			c.Print(o.Language.Say(words.PINTryAgain, err))
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w, so nothing is changed", errNoPIN)
}

// forgotten reports whether the recovery key is typed for want of the PIN alone: the TPM
// would release the secret to this boot.
func (o *opening) forgotten() bool {
	return o.Lock.HasPIN() && o.Chip.Err == nil && o.Chip.TPM.Admits(o.Lock.Sealed) == nil
}

// offerPIN lets anyone who has opened the root partition with the recovery key set a new PIN.
// On trial it waits for the next start of a blessed system, as every new secret does.
func (o *opening) offerPIN(c hw.Console, key *luks2.RecoveryKey, volumeKey []byte) error {
	if o.State.Trial {
		return nil
	}
	yes, err := hw.AskYes(c, o.Language.Text(words.OfferPIN), KeyTimeout)
	if err != nil || !yes {
		return err
	}
	r := &renewal{opening{Host: o.Host}, &nextboot.NewSecret{PIN: nextboot.SetPIN}}
	start, err := r.mayRenew()
	if err != nil {
		return err
	}
	pin, err := o.newPIN(c, o.shortestPIN(c, volumeKey))
	if err != nil {
		return err
	}
	defer pin.Wipe()
	o.Renewed, err = r.replaceSecret(start, key, volumeKey, pin)
	if err == nil {
		c.Print(r.done())
	} else if o.Renewed {
		c.Print(o.Language.Say(words.PINGoesOn, err))
		return nil
	}
	return err
}
