package setup

import (
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// maySign are the files that an enrollment signs: with new keys, none that another has
// replaced.
func maySign(h *host.Host, list *secureboot.List) enroll.Allowed {
	if h.State.Root == slot.RootOpen && rootpart.KeysUnfinished(h.Store, h.Lock) {
		return rootpart.AllowedAnew(list)
	}
	return rootpart.Allowed(list)
}

// foretellAgain has the TPM's record be for what the firmware holds in fact after an
// enrollment that its owner has agreed to: it may keep an entry otherwise than it was
// written. Where that fails, the recovery key is asked for once more.
func foretellAgain(h *host.Host, foretold *rootpart.Start, secret *policy.Secret, list *secureboot.List) {
	if foretold == nil {
		return
	}
	if err := foretell(h, foretold, secret, list); err != nil {
		h.Log.Say("the recovery key will be asked for once more at the next start: %v", err)
	}
}

func foretell(h *host.Host, foretold *rootpart.Start, secret *policy.Secret, list *secureboot.List) error {
	now, err := enroll.Observe(h.Variables)
	if err != nil {
		return err
	}
	log, _, err := h.ReadLog()
	if err != nil {
		return err
	}
	vars := pcr.SecureBootVariables{SecureBoot: true, PK: now.PK.Raw, KEK: now.KEK.Raw, DB: now.DB.Raw, DBX: now.DBX.Raw}
	value, err := pcr.PredictPCR7(log, vars, [][]byte{list.Wanted.DB[0].SignatureData()})
	if err != nil || value == foretold.Boot.PCR7 {
		return err
	}
	volumeKey, err := h.OpenByTPM(secret)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	return h.RecordStart(foretold.Enrolled(value), volumeKey, secret, nil)
}
