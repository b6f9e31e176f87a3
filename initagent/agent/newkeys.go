package agent

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/rootpart"
)

// keyChange is what replaces this machine's Secure Boot keys.
func (a *Agent) keyChange(volumeKey []byte, secret *policy.Secret) *rootpart.KeyChange {
	return &rootpart.KeyChange{
		Machine: a.Machine, Disk: a.disk, Variables: a.Variables, Random: a.Random, Lock: a.lock,
		VolumeKey: volumeKey, Secret: secret, Date: a.contract.Date(), Say: a.Log.Say,
	}
}

// finishKeys goes on with a replacement of the Secure Boot keys that was cut, or settles
// one that the firmware enforces. Where it writes to the firmware, the machine starts
// again: this boot was measured with other keys. Where it fails, what starts the machine
// still does, and the next boot tries again.
func (a *Agent) finishKeys(volumeKey []byte, secret *policy.Secret, narrow func() error) {
	if !rootpart.KeysUnfinished(a.Store) {
		return
	}
	started := a.firmware
	wrote, err := a.keyChange(volumeKey, secret).Finish(&started, narrow)
	if err != nil {
		a.Log.Say("the replacement of the Secure Boot keys was not finished: %v", err)
	}
	if wrote {
		a.facts.Enrol = slot.Done
	}
}

// narrow leaves in the TPM's record what this machine starts as with its new keys: what
// it started as before was for the old ones, and while they were replaced.
func (a *Agent) narrow(volumeKey []byte, secret *policy.Secret) error {
	a.takeList(secret)
	return a.rewriteRecord(volumeKey, secret, nil)
}

// rewriteRecord has the TPM release the secret for how this machine starts now, and for
// nothing else but what is added. Nobody is asked: less than the machine had is refused.
func (a *Agent) rewriteRecord(volumeKey []byte, secret *policy.Secret, add func(*rootpart.Fallbacks)) error {
	if a.chip.err != nil {
		return a.chip.err
	}
	start, err := a.toldStart()
	if err != nil {
		return err
	}
	b, record, boots, err := a.composed(start, volumeKey, secret, add)
	if err != nil {
		return err
	}
	accepted, err := b.Accept(a.lock, secret, record)
	if err == nil && !accepted {
		err = a.sealAgain(b, volumeKey, secret, record, boots)
	}
	if err != nil {
		return fmt.Errorf("the TPM's record: %w", err)
	}
	if accepted {
		a.record = record
	}
	return a.guarantee(b.Now(record, a.lock), secret)
}

// composed is the record for a start that the TPM has released the secret to.
func (a *Agent) composed(start *rootpart.Start, volumeKey []byte, secret *policy.Secret, add func(*rootpart.Fallbacks)) (rootpart.Binding, *policy.Record, []policy.Boot, error) {
	b := a.binding()
	b.Proves = false // nothing unseals twice in one boot
	b.Had, b.Enforces = rootpart.Had(a.had, a.lock), start.SecureBoot
	q := a.fallbacks(b, start, secret)
	if add != nil {
		add(&q)
	}
	record, boots, err := b.Acceptable(q, a.lock, secret, volumeKey, a.readESP)
	return b, record, boots, err
}

// sealAgain is for a TPM without room for the record.
func (a *Agent) sealAgain(b rootpart.Binding, volumeKey []byte, secret *policy.Secret, record *policy.Record, boots []policy.Boot) error {
	keys, err := a.storedKeys(secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	f, err := a.Disks.OpenPartition(a.disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	return errors.Join(b.Rebind(a.Random, f, a.lock, volumeKey, secret, keys, boots[0], record, boots[1:]...), f.Close())
}
