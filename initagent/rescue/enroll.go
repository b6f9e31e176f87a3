package rescue

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// Enroll gives the firmware this machine's own Secure Boot keys again, after it
// has lost them. The keys are those on the root partition, and so is what the
// firmware shall hold: PCR 7 comes out at what the TPM knows.
//
// The order and the guards are the first boot's: everything that the machine
// starts is signed before the firmware is told, and the Platform Key, which makes
// it count, comes last. Cut anywhere, the machine starts anything, and this
// command goes on where it stopped.
func (m *Machine) Enroll(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	keys, wanted, err := m.ownKeys(open)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	state, err := enrol.Observe(m.Variables)
	if err != nil {
		return err
	}
	plan, err := enrol.Plan(state, wanted, 0)
	if err != nil {
		return err
	}
	if len(plan) == 0 {
		c.Print("The firmware holds this machine's keys already.\n")
		for _, d := range enrol.Enforced(state, wanted) {
			c.Print(fmt.Sprintf("But %s: %s, and start again.\n", d.What, d.Cure))
		}
		return nil
	}
	for _, a := range plan {
		c.Print(a.Reason + "\n")
	}
	if err := confirm(c, "Write this to the firmware?"); err != nil {
		return err
	}
	signer := enrol.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
	err = m.ESP.Write(p.disk, func(dir hw.ESPDir) error {
		if state.SecureBoot != enrol.On {
			results, err := enrol.SignAll(dir, state, signer)
			for _, r := range results {
				c.Print(fmt.Sprintf("%s: %s\n", r.Name, r.Outcome))
			}
			if err != nil {
				return err
			}
		}
		e := enrol.Enroller{
			Variables: m.Variables, Keys: keys, Wanted: wanted, Time: secureboot.Timestamp(m.Now(), p.contract.Date()),
			Signed: func() error { return enrol.CheckSigned(dir, signer) },
			Pause:  m.Sleep, Say: func(message string) { c.Print(message + "\n") },
		}
		return e.Run(0)
	})
	if err != nil {
		return err
	}
	c.Print("The keys are enrolled, and enforced from the next start on (`exit` restarts the machine).\n" +
		"If it asks for the recovery key then, the firmware changed more than its keys.\n")
	return nil
}

// ownKeys are this machine's Secure Boot keys and what the firmware shall hold.
func (m *Machine) ownKeys(open *Opened) (*secureboot.KeySet, secureboot.Wanted, error) {
	none := secureboot.Wanted{}
	keys, err := rootpart.StoredKeys(m.Store, open.Secret)
	if err != nil {
		return nil, none, err
	}
	if keys == nil {
		return nil, none, errors.New("this machine has no Secure Boot keys of its own")
	}
	text, err := m.Store.Read(rootpart.WantedFile, maxWanted)
	if err == nil {
		var wanted secureboot.Wanted
		if wanted, err = secureboot.ParseWanted(text); err == nil {
			return keys, wanted, nil
		}
	}
	keys.Wipe()
	return nil, none, fmt.Errorf("what the firmware shall hold is not known: %w", err)
}

// maxWanted bounds the file in bytes: dbx is a few tens of KiB.
const maxWanted = 1 << 20
