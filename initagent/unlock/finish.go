package unlock

import (
	"errors"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

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
func (o *opening) weaker(c hw.Console) func([]string) error {
	return func(lost []string) error { return rootpart.AskWeaker(c, lost, KeyTimeout) }
}
