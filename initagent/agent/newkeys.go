package agent

import (
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
)

// finishKeys goes on with a replacement of the Secure Boot keys that was cut, or settles
// one that the firmware enforces. Where it writes to the firmware, the machine starts
// again: this boot was measured with other keys. Where it fails, what starts the machine
// still does, and the next boot tries again.
func (a *Agent) finishKeys(volumeKey []byte, secret *policy.Secret, admit func([]pcr.Digest) error) {
	if !rootpart.KeysUnfinished(a.Store, a.Lock) {
		return
	}
	started := a.FirmwareKeys
	wrote, err := a.KeyChange(volumeKey, secret, admit).Finish(&started)
	if err != nil {
		a.Log.Say("the replacement of the Secure Boot keys was not finished: %v", err)
	}
	if wrote {
		a.facts.Enroll = slot.Done
	}
}

// finishAccepted is finishKeys for a boot that the recovery key has opened: nothing is
// written to the firmware unless its owner has just accepted what it is now.
func (a *Agent) finishAccepted(volumeKey []byte, secret *policy.Secret) {
	if !rootpart.KeysUnfinished(a.Store, a.Lock) {
		return
	}
	var admit func([]pcr.Digest) error
	if a.Chip.Err == nil {
		if start, err := a.Measured(); err == nil && a.Binding().Admits(a.Lock, secret, start.Boot) {
			admit = a.Admits(volumeKey, secret)
		}
	}
	a.finishKeys(volumeKey, secret, admit)
}

// maySign are the files that an enrollment signs: with new keys, none that another has
// replaced.
func (a *Agent) maySign(list *secureboot.List) enroll.Allowed {
	if a.State.Root == slot.RootOpen && rootpart.KeysUnfinished(a.Store, a.Lock) {
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
	log, _, err := a.ReadLog()
	if err != nil {
		return err
	}
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: now.PK.Raw, KEK: now.KEK.Raw, DB: now.DB.Raw, DBX: now.DBX.Raw}
	value, err := pcr.PredictPCR7(log, vars, [][]byte{list.Wanted.DB[0].SignatureData()})
	if err != nil || value == a.foretold.Boot.PCR7 {
		return err
	}
	volumeKey, err := a.OpenByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	return a.RecordStart(a.foretold.Enrolled(value), volumeKey, secret, nil)
}
