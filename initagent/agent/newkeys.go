package agent

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
)

// keyChange is what replaces this machine's Secure Boot keys. admit has the TPM's record
// be for this boot and what PCR 7 will be besides; nil where it cannot be told.
func (a *Agent) keyChange(volumeKey []byte, secret *policy.Secret, admit func([]pcr.Digest) error) *rootpart.KeyChange {
	k := &rootpart.KeyChange{
		Machine: a.Machine, Disk: a.disk, Variables: a.Variables, Random: a.Random, Lock: a.lock,
		VolumeKey: volumeKey, Secret: secret, Date: a.contract.Date(), Say: a.Log.Say, Admit: admit,
	}
	if log, _, err := a.readLog(); err == nil {
		k.Log = log
	}
	return k
}

// finishKeys goes on with a replacement of the Secure Boot keys that was cut, or settles
// one that the firmware enforces. Where it writes to the firmware, the machine starts
// again: this boot was measured with other keys. Where it fails, what starts the machine
// still does, and the next boot tries again.
func (a *Agent) finishKeys(volumeKey []byte, secret *policy.Secret, admit func([]pcr.Digest) error) {
	if !rootpart.KeysUnfinished(a.Store, a.lock) {
		return
	}
	started := a.firmware
	wrote, err := a.keyChange(volumeKey, secret, admit).Finish(&started)
	if err != nil {
		a.Log.Say("the replacement of the Secure Boot keys was not finished: %v", err)
	}
	if wrote {
		a.facts.Enroll = slot.Done
	}
}

// admits has the TPM's record be for this boot, which the TPM has opened, or its owner
// has accepted, and for PCR 7 with these values besides.
func (a *Agent) admits(volumeKey []byte, secret *policy.Secret) func([]pcr.Digest) error {
	return func(values []pcr.Digest) error {
		a.takeList(secret)
		return a.rewriteRecord(volumeKey, secret, values)
	}
}

// finishAccepted is finishKeys for a boot that the recovery key has opened: nothing is
// written to the firmware unless its owner has just accepted what it is now.
func (a *Agent) finishAccepted(volumeKey []byte, secret *policy.Secret) {
	if !rootpart.KeysUnfinished(a.Store, a.lock) {
		return
	}
	var admit func([]pcr.Digest) error
	if a.chip.err == nil {
		if start, err := a.measured(); err == nil && a.binding().Admits(a.lock, secret, start.Boot) {
			admit = a.admits(volumeKey, secret)
		}
	}
	a.finishKeys(volumeKey, secret, admit)
}

// keysAhead are what PCR 7 will be while a replacement of the Secure Boot keys goes on:
// a record that is written meanwhile must allow it.
func (a *Agent) keysAhead(secret *policy.Secret) []pcr.Digest {
	if !rootpart.KeysUnfinished(a.Store, a.lock) {
		return nil
	}
	log, _, err := a.readLog()
	if err != nil {
		return nil
	}
	return rootpart.Ahead(a.Store, secret, a.lock, a.firmware, log)
}

// maySign are the files that an enrollment signs: with new keys, none that another has
// replaced.
func (a *Agent) maySign(list *secureboot.List) enroll.Allowed {
	if a.state.Root == slot.RootOpen && rootpart.KeysUnfinished(a.Store, a.lock) {
		return rootpart.AllowedAnew(list)
	}
	return rootpart.Allowed(list)
}

// foretellAgain has the TPM's record be for what the firmware holds in fact after an
// enrollment that its owner has agreed to: it may keep an entry otherwise than it was
// written. Where that fails, the recovery key is asked for once more.
func (a *Agent) foretellAgain(secret *policy.Secret, list *secureboot.List) {
	if a.foretold == nil {
		return
	}
	if err := a.foretell(secret, list); err != nil {
		a.Log.Say("the recovery key will be asked for once more at the next start: %v", err)
	}
}

func (a *Agent) foretell(secret *policy.Secret, list *secureboot.List) error {
	now, err := enroll.Observe(a.Variables)
	if err != nil {
		return err
	}
	log, _, err := a.readLog()
	if err != nil {
		return err
	}
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: now.PK.Raw, KEK: now.KEK.Raw, DB: now.DB.Raw, DBX: now.DBX.Raw}
	value, err := pcr.PredictPCR7(log, vars, [][]byte{list.Wanted.DB[0].SignatureData()})
	if err != nil || value == a.foretold.Boot.PCR7 {
		return err
	}
	volumeKey, err := a.openByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	return a.recordStart(a.foretold.Enrolled(value), volumeKey, secret, nil)
}

// rewriteRecord has the TPM release the secret for how this machine starts now, and for
// nothing else but for PCR 7 with other values. Nobody is asked: less than the machine had
// is refused.
func (a *Agent) rewriteRecord(volumeKey []byte, secret *policy.Secret, also []pcr.Digest) error {
	if a.chip.err != nil {
		return a.chip.err
	}
	start, err := a.toldStart()
	if err != nil {
		return err
	}
	return a.recordStart(start, volumeKey, secret, also)
}

func (a *Agent) recordStart(start *rootpart.Start, volumeKey []byte, secret *policy.Secret, also []pcr.Digest) error {
	b, record, boots, err := a.composed(start, volumeKey, secret, also)
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
func (a *Agent) composed(start *rootpart.Start, volumeKey []byte, secret *policy.Secret, also []pcr.Digest) (rootpart.Binding, *policy.Record, []policy.Boot, error) {
	b := a.binding()
	b.Proves = false // nothing unseals twice in one boot
	b.Had, b.Enforces = rootpart.Had(a.had, a.lock), start.SecureBoot
	q := a.fallbacks(b, start, secret)
	q.Also = also
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
