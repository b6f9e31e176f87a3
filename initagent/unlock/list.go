package unlock

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// restoreList takes the list in a boot that the recovery key has opened. Where it is
// damaged, and the firmware holds this machine's own keys and nothing else that starts
// anything, it is made again: what the firmware holds needs nobody to vouch for it then.
// With keys of others in the firmware that waits for a boot that the TPM opens.
func (o *opening) restoreList(secret *policy.Secret) {
	if !o.TakeList(secret) || !o.OwnEnforced() {
		return
	}
	if foreign := enroll.Foreign(o.FirmwareKeys, o.List); foreign != "" {
		o.Log.Say("it is made again once the TPM opens the machine by itself, or its owner has given the firmware this machine's own keys again (Setup Mode): %s", foreign)
		return
	}
	o.remakeList(secret, true)
}

// remakeList makes a bare list of what the firmware holds, and of the ESP's files that
// this machine's key has signed. It is one write: cut before it, the next boot does it.
func (o *opening) remakeList(secret *policy.Secret, damaged bool) {
	if err := o.adoptFirmware(); err != nil {
		o.Log.Say("the list of what the firmware shall hold was not made: %v", err)
		return
	}
	o.allowSigned()
	if err := rootpart.KeepList(o.Store, o.Random, secret, o.List); err != nil {
		o.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
		return
	}
	o.Log.Say("the list of what the firmware shall hold is made from what it holds")
	if damaged {
		o.NoteSelf(journal.Healed, "the list of what the firmware shall hold was damaged, and is made again from what it holds")
	}
}

// allowSigned adds the ESP's files that this machine's key has signed to the list, and
// reports whether there were any new ones.
func (o *opening) allowSigned() (changed bool) {
	for _, i := range o.SignedImages(o.List) {
		changed = o.List.Allow([32]byte(i.Digest), i.Name) || changed
	}
	return changed
}

// renewList takes the list, and brings it up to date, in a boot whose secret the
// TPM has released: where the firmware enforces Secure Boot and PCR 7 is part of
// what the TPM asks for, what the firmware holds is what it held when the machine
// was accepted.
//
// It makes the list of a machine that an earlier release has installed, or whose list is
// damaged: from the
// firmware, since the file that such a release keeps can be edited by the running
// system; and of the ESP's files that this machine's key has signed. It takes over
// what was added to dbx, and the running UKI where an earlier release has staged
// it. Each is one write of the file (rootpart.KeepList): cut before it, the next
// boot does it again.
func (o *opening) renewList(secret *policy.Secret, record *policy.Record) {
	damaged := o.TakeList(secret)
	if o.List == nil || !o.OwnEnforced() || !o.bindsSecureBoot(record) {
		return
	}
	if rootpart.KeysUnfinished(o.Store, o.Lock) {
		return // it is of two sets of keys, and is not what is stored
	}
	if o.List.Bare {
		o.remakeList(secret, damaged)
		return
	}
	changed := o.List.AdoptRevocations(o.FirmwareKeys.DBX.Content)
	running := host.UKIImage(bls.Name{ImageID: o.Contract.ImageID, Version: o.Contract.Version})
	if changed || !o.List.Names(running) {
		changed = o.allowSigned() || changed
	}
	if !changed {
		return
	}
	if err := rootpart.KeepList(o.Store, o.Random, secret, o.List); err != nil {
		o.Log.Say("the list of what the firmware shall hold was not stored: %v", err)
	}
}

// bindsSecureBoot reports whether the TPM released the secret only because PCR 7
// has its value.
func (o *opening) bindsSecureBoot(record *policy.Record) bool {
	if record != nil {
		return !record.Provisional() && slices.Contains(record.PCRs(), pcr.SecureBoot)
	}
	return slices.Contains(o.Lock.Sealed.PCRs, pcr.SecureBoot)
}

// adoptFirmware makes the list of what the firmware holds. This machine's own keys
// must be among it, kept as keys must be.
func (o *opening) adoptFirmware() error {
	live := o.FirmwareKeys.Live()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		if missing := o.List.Wanted.Of(v).Without(live.Of(v)); len(missing) > 0 {
			return fmt.Errorf("%s lacks %s", v, missing)
		}
	}
	o.List.Adopt(live)
	if foreign := enroll.Foreign(o.FirmwareKeys, o.List); foreign != "" {
		return errors.New(foreign)
	}
	return nil
}
