package unlock

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
)

// offerKeys lets the owner give the firmware this machine's keys again: after the
// system was installed again beside a root partition that was kept, or after the
// firmware was reset. Anyone who put the firmware into Setup Mode does not have the
// recovery key, which has just opened the root partition.
//
// The TPM is told first how the machine will start from then on: with firmware that
// enforces these keys, so that what it starts now, which is anything, gains nothing.
// Cut before the keys are enrolled, the machine is in Setup Mode, asks for the
// recovery key and comes back here; cut after it, it starts as the TPM was told.
func (o *opening) offerKeys(c hw.Console, f hw.File, volumeKey []byte, secret *policy.Secret) error {
	if o.State.Keys != bootflow.KeysMissing {
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
	yes, err := hw.AskYes(c, o.Language.Say(words.GiveKeys, o.orCut()), KeyTimeout)
	if err != nil || !yes {
		return err
	}
	changed, err := rootpart.AskROMs(o.Language, list, o.Drivers(), func(question string) (bool, error) { return hw.AskYes(c, question, KeyTimeout) })
	if changed && err == nil {
		err = rootpart.KeepList(o.Store, o.Random, secret, list)
	}
	if err == nil {
		err = setup.AskOthersAgain(o.Host, c, list)
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
		c.Print(o.Language.Text(words.ManagerRefused))
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
		c.Print(o.Language.Say(words.KeyOnceMore, err))
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
// partition: making them was cut, or they were lost. Where the root partition has an owner signature
// others would not vouch for it; where it is bound to a TPM and has none, these would not
// either.
func (o *opening) offerFirstKeys(c hw.Console) (err error) {
	if o.Chip.Err == nil || len(o.Lock.OwnerSignature) > 0 || o.Lock.Sealed != nil || o.Lock.Strange != nil {
		return nil
	}
	o.EnrollAgain, err = hw.AskYes(c, o.Language.Say(words.MakeKeys, o.orCut()), KeyTimeout)
	return err
}

// orCut is one more good reason for Setup Mode, on a machine that has never come to the
// end of an enrollment by the keys on its root partition.
func (o *opening) orCut() string {
	if o.Chip.Err == nil || !o.unenrolled() {
		return ""
	}
	return o.Language.Text(words.OrPowerCut)
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
	// The keys of others are measured where an option ROM has started by them.
	if drivers := o.Drivers(); len(wanted.DB) != 1 && (!drivers.Known || len(drivers.ROMs) > 0) {
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

// finishKeys goes on with a replacement of the Secure Boot keys that was cut, or settles
// one that the firmware enforces. Where it writes to the firmware, the machine starts
// again: this boot was measured with other keys. Where it fails, what starts the machine
// still does, and the next boot tries again.
func (o *opening) finishKeys(volumeKey []byte, secret *policy.Secret, admit func([]pcr.Digest) error) {
	if !rootpart.KeysUnfinished(o.Store, o.Lock) {
		return
	}
	started := o.FirmwareKeys
	wrote, err := o.KeyChange(volumeKey, secret, admit).Finish(&started)
	if err != nil {
		o.Log.Say("the replacement of the Secure Boot keys was not finished: %v", err)
	}
	if wrote {
		o.KeysWritten = true
	}
}

// finishAccepted is finishKeys for a boot that the recovery key has opened: nothing is
// written to the firmware unless its owner has just accepted what it is now.
func (o *opening) finishAccepted(volumeKey []byte, secret *policy.Secret) {
	if !rootpart.KeysUnfinished(o.Store, o.Lock) {
		return
	}
	var admit func([]pcr.Digest) error
	if o.Chip.Err == nil {
		if start, err := o.Measured(); err == nil && o.Binding().Admits(o.Lock, secret, start.Boot) {
			admit = o.Admits(volumeKey, secret)
		}
	}
	o.finishKeys(volumeKey, secret, admit)
}

// goOnUntold decides, with the root partition open, whether the system may be started
// beside a TPM that is there and has not worked in this boot. The TPM is told now where
// that works, and then there is nothing to ask. Otherwise the owner is, in every such
// boot: what the TPM released to root of the running system they could keep. Nothing on
// the disk says that it was never given the machine secret: that can be an old note.
//
// A machine whose image requires a TPM never comes here.
func (o *opening) goOnUntold(c hw.Console) error {
	if o.Chip.Err == nil {
		return nil
	}
	fault := o.Chip.Err
	err := o.LeavePhase(pcr.LeaveInitrd)
	o.Chip.Err = fault // this boot does without it
	if err == nil {
		return nil
	}
	err = rootpart.AskWithoutTPM(c, fault, KeyTimeout)
	o.Answered = !errors.Is(err, hw.ErrNobody)
	if err != nil {
		return err
	}
	o.Chip.Untold = true
	return nil
}

// weaker asks the owner whether the machine may have less than it had.
func (o *opening) weaker(c hw.Console) func([]words.Line) error {
	return func(lost []words.Line) error { return rootpart.AskWeaker(c, lost, KeyTimeout) }
}
