package unlock

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"time"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/vault"
)

// errNoPIN leads to the recovery key.
var errNoPIN = errors.New("no PIN was given")

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
	return o.released(func(known []policy.Boot) (*policy.Secret, *policy.Record, error) {
		// Where the TPM releases nothing to this boot nobody is asked in vain.
		if err := o.Chip.TPM.Admits(o.Lock.Sealed, known...); err != nil {
			return nil, nil, err
		}
		c, err := o.Person.Open()
		if err != nil {
			return nil, nil, err
		}
		defer c.Close()
		for {
			secret, record, err := o.tryPIN(c, limit, known)
			if !errors.Is(err, tpm.ErrWrongPIN) && !errors.Is(err, policy.ErrPINLength) {
				return secret, record, err
			}
			c.Print(fmt.Sprintf("This is not the PIN.%s\n", o.triesLeft()))
		}
	})
}

// tryPIN asks once, and has the TPM try what was typed. What is too short for a PIN is not
// tried.
func (o *opening) tryPIN(c hw.Console, limit uint64, known []policy.Boot) (*policy.Secret, *policy.Record, error) {
	typed, err := c.Ask("\nPIN (an empty line: it is forgotten, the recovery key opens): ", true, 0)
	if err != nil {
		return nil, nil, err
	}
	defer luks2.Wipe(typed)
	if len(typed) == 0 {
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
		err = fmt.Errorf("%w.%s", err, o.triesLeft())
	}
	return secret, record, err
}

// triesLeft says how many wrong PINs the TPM still takes, and how long it wants to wait.
func (o *opening) triesLeft() string {
	tries, err := o.Chip.TPM.PINTries()
	if err != nil {
		return ""
	}
	wait := "a while"
	if tries.Wait > 0 {
		wait = inMinutes(tries.Wait)
	}
	if tries.Left == 0 {
		return fmt.Sprintf(" The TPM takes none for now, not even the right one: leave the machine switched on for %s, and start it again then, or type the recovery key", wait)
	}
	return fmt.Sprintf(" %d more wrong ones, and the TPM takes none for %s.", tries.Left, wait)
}

func inMinutes(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%d seconds", int(d.Seconds()))
	}
	return fmt.Sprintf("%d minutes", int((d+time.Minute-1)/time.Minute))
}

// newPINTries is how often two different PINs may be typed.
const newPINTries = 3

// newPIN asks for a new PIN, twice. The caller wipes it.
func (o *opening) newPIN(c hw.Console) (*policy.PIN, error) {
	memory, err := o.Memory()
	if err != nil {
		return nil, err
	}
	cpus := runtime.NumCPU()
	memory = rootpart.KeyMemory(memory, cpus)
	for range newPINTries {
		typed, err := c.Ask(fmt.Sprintf("New PIN or passphrase, %d characters at least (an empty line changes nothing): ", policy.MinPIN), true, SecretTimeout)
		if err != nil {
			return nil, err
		}
		if len(typed) == 0 {
			break
		}
		again, err := c.Ask("Once more: ", true, SecretTimeout)
		same := bytes.Equal(typed, again)
		luks2.Wipe(again)
		var pin *policy.PIN
		if err == nil && same {
			pin, err = vault.NewPIN(o.Random, typed, memory, cpus)
		}
		luks2.Wipe(typed)
		switch {
		case err == nil && same:
			return pin, nil
		case err == nil:
			c.Print("These are two different ones. Nothing is changed yet: try again.\n")
		case errors.Is(err, policy.ErrPINLength):
			c.Print(fmt.Sprintf("%v. Nothing is changed yet: try again.\n", err))
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

// offerPIN lets whoever has opened the root partition with the recovery key set a new PIN.
// On trial it waits for the next start of a blessed system, as every new secret does.
func (o *opening) offerPIN(c hw.Console, key *luks2.RecoveryKey, volumeKey []byte) error {
	if o.State.Trial {
		return nil
	}
	yes, err := hw.AskYes(c, "Set a new PIN?", KeyTimeout)
	if err != nil || !yes {
		return err
	}
	r := &renewal{opening{Host: o.Host}, &nextboot.NewSecret{PIN: nextboot.SetPIN}}
	start, err := r.mayRenew()
	if err != nil {
		return err
	}
	pin, err := o.newPIN(c)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	replaced, err := r.replaceSecret(start, key, volumeKey, pin)
	if err == nil {
		c.Print(r.done())
	} else if replaced {
		o.Log.Say("the next start finishes the new PIN or takes it back: %v", err)
		return nil
	}
	return err
}
