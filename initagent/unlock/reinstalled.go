package unlock

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
)

// offerKeys lets the owner give the firmware this machine's keys again: after the
// system was installed again beside a root partition that was kept, or after the
// firmware was reset. Whoever put the firmware into Setup Mode does not have the
// recovery key, which has just opened the root partition.
//
// The TPM is told first how the machine will start from then on: with firmware that
// enforces these keys, so that what it starts now, which is anything, gains nothing.
// Cut before the keys are enrolled, the machine is in Setup Mode, asks for the
// recovery key and comes back here; cut after it, it starts as the TPM was told.
func (o *opening) offerKeys(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	if o.State.Keys != slot.KeysMissing {
		return nil
	}
	keys, err := o.StoredKeys(secret)
	if keys == nil && err == nil {
		return o.offerFirstKeys(c)
	}
	if err != nil {
		return err
	}
	defer keys.Wipe()
	list, _, err := rootpart.OwnList(o.Store, secret, o.Lock, nil)
	if err != nil {
		return err
	}
	yes, err := hw.AskYes(c, "The firmware has no Secure Boot keys: it is in Setup Mode. Give it this machine's own again?\n"+
		"Say yes only if you have installed this system again, or cleared the keys yourself"+o.orCut()+".", KeyTimeout)
	if err != nil || !yes {
		return err
	}
	changed, err := rootpart.AskROMs(list, o.Drivers(), func(question string) (bool, error) { return hw.AskYes(c, question, KeyTimeout) })
	if changed && err == nil {
		err = rootpart.KeepList(o.Store, o.Random, secret, list)
	}
	if err != nil {
		return err
	}
	o.EnrollAgain = true
	if o.Chip.Err != nil {
		return nil
	}
	if o.startedByRefused(list) {
		// What the TPM has is of the one that takes its place.
		c.Print("The boot manager that has started this machine is in dbx: a newer one takes its place. If the TPM does not know how that starts, the recovery key is asked for once more.\n")
		return nil
	}
	start, err := o.enrolled(keys, list)
	if err == nil {
		b := o.Binding()
		b.Proves = false // what is sealed to the next boot does not unseal in this one
		err = o.accept(c, f, b, volumeKey, secret, start)
	}
	if err == nil {
		o.Foretold = start
	}
	if errors.Is(err, rootpart.ErrWeaker) {
		// The TPM does not know this header any more, and its owner does not say that it is
		// right: with the header of another time come the keys of that time.
		o.EnrollAgain = false
		return err
	}
	if err != nil {
		c.Print(fmt.Sprintf("The recovery key will be asked for once more at the next start: %v.\n", err))
	}
	return nil
}

// startedByRefused reports whether a boot manager lies on the ESP that dbx has.
func (o *opening) startedByRefused(list *secureboot.List) bool {
	return slices.ContainsFunc(layout.Managers(), func(name string) bool {
		_, have, _, err := o.FindManager(name)
		return err == nil && have != nil && o.RefusedImage(list, have)
	})
}

// offerFirstKeys is offerKeys for a machine without a TPM, whose keys come after its root
// partition: making them was cut, or they were lost. Where the root partition has a deed
// others would not vouch for it; where it is bound to a TPM and has none, these would not
// either.
func (o *opening) offerFirstKeys(c hw.Console) (err error) {
	if o.Chip.Err == nil || len(o.Lock.Deed) > 0 || o.Lock.Sealed != nil {
		return nil
	}
	o.EnrollAgain, err = hw.AskYes(c, "The firmware has no Secure Boot keys: it is in Setup Mode, and this machine has none of its own. Make them, and give them to the firmware?\n"+
		"Say yes only if you have cleared the firmware's keys yourself"+o.orCut()+".", KeyTimeout)
	return err
}

// orCut is one more good reason for Setup Mode, on a machine that has never come to the
// end of an enrollment by the keys on its root partition.
func (o *opening) orCut() string {
	if o.Chip.Err == nil || !o.unenrolled() {
		return ""
	}
	return ", or if the power was cut while this machine was set up"
}

// enrolled is how the running system starts once the keys are enrolled.
func (o *opening) enrolled(keys *secureboot.KeySet, stored *secureboot.List) (*rootpart.Start, error) {
	start, err := o.Expected()
	if err != nil {
		return nil, err
	}
	list, err := setup.ListToEnroll(o.Host, keys, stored)
	if err != nil {
		return nil, err
	}
	wanted := list.Wanted
	if len(wanted.DB) != 1 {
		return nil, errors.New("the firmware will measure vendor keys too, and in which order is not known yet")
	}
	log, _, err := o.ReadLog()
	if err != nil {
		return nil, err
	}
	vars := pcr.SecureBootVariables{SecureBoot: true}
	revoked := o.FirmwareKeys.DBX.Content
	for _, v := range []struct {
		into    *[]byte
		content secureboot.Database
	}{{&vars.PK, wanted.PK}, {&vars.KEK, wanted.KEK}, {&vars.DB, wanted.DB}, {&vars.DBX, slices.Concat(revoked, wanted.DBX.Without(revoked))}} {
		if len(v.content) == 0 {
			continue
		}
		if *v.into, err = v.content.Marshal(); err != nil {
			return nil, err
		}
	}
	pcr7, err := pcr.PredictPCR7(log, vars, [][]byte{wanted.DB[0].SignatureData()})
	return start.Enrolled(pcr7), err
}
