package recovery

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// Enroll gives the firmware this machine's own Secure Boot keys again, after it
// has lost them. The keys are those on the root partition, and so is what the
// firmware shall hold: PCR 7 comes out at what the TPM knows.
//
// Of the ESP's files it signs those that the list with the keys has. An earlier
// release has stored no list: then the image's contract and the firmware's defaults
// decide, as at a first boot, and what this machine's key has signed is all that
// there is to start from. The next boot that the TPM opens stores the list.
//
// The order and the guards are the first boot's: everything that the machine
// starts is signed before the firmware is told, and the Platform Key, which makes
// it count, comes last. Cut anywhere, the machine starts anything, and this
// command goes on where it stopped.
func (m *Machine) Enroll(c hw.Console) error {
	open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	state, err := enroll.Observe(m.Variables)
	if err != nil {
		return err
	}
	keys, list, err := m.ownKeys(c, open, state)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	plan, err := enroll.Plan(state, list.Wanted, 0)
	if err != nil {
		return err
	}
	if len(plan) == 0 {
		c.Print("The firmware holds this machine's keys already.\n")
		for _, d := range enroll.Enforced(state, list.Wanted) {
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
	signer := enroll.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
	allowed, err := m.maySign(open, list)
	if err != nil {
		return err
	}
	err = m.WriteESP(func(dir hw.ESPDir) error {
		if state.SecureBoot != enroll.On {
			results, err := enroll.SignAll(dir, state, signer, allowed)
			for _, r := range results {
				c.Print(r.String() + "\n")
			}
			if err != nil {
				return err
			}
		}
		e := enroll.Enroller{
			Variables: m.Variables, Keys: keys, Wanted: list.Wanted, Time: secureboot.Timestamp(m.Now(), m.Contract.Date()),
			Signed: func() error {
				return enroll.CheckSigned(dir, signer, allowed, slices.Concat(list.Wanted.DBX, state.DBX.Content))
			},
			Pause: m.Sleep, Say: func(message string) { c.Print(message + "\n") },
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

// maySign are the files that are signed: by keys that replace others, none that another
// file has replaced.
func (m *Machine) maySign(open *Opened, list *secureboot.List) (enroll.Allowed, error) {
	lock, err := m.lockOf(open)
	if err != nil {
		return nil, err
	}
	if rootpart.KeysUnfinished(m.Store, lock) {
		return rootpart.AllowedAnew(list), nil
	}
	return rootpart.Allowed(list), nil
}

// ownKeys are this machine's Secure Boot keys, and what the firmware shall hold.
func (m *Machine) ownKeys(c hw.Console, open *Opened, state enroll.State) (*secureboot.KeySet, *secureboot.List, error) {
	lock, err := m.lockOf(open)
	if err != nil {
		return nil, nil, err
	}
	if rootpart.KeysUnfinished(m.Store, lock) && state.SetupMode != enroll.On {
		return nil, nil, errKeysUnfinished
	}
	keys, err := rootpart.StoredKeys(m.Store, open.Secret, lock)
	if err != nil {
		return nil, nil, err
	}
	if keys == nil {
		return nil, nil, errors.New("this machine has no Secure Boot keys of its own")
	}
	stored, err := m.ownList(c, open, lock, nil)
	var list *secureboot.List
	if err == nil && state.SetupMode == enroll.On {
		err = m.askROMs(c, open, stored)
	}
	if err == nil {
		list, _, err = rootpart.Enrollable(stored, keys, m.Contract.VendorKeys, m.drivers(), state)
	}
	if err != nil {
		keys.Wipe()
		return nil, nil, fmt.Errorf("what the firmware shall hold is not known: %w", err)
	}
	return keys, list, nil
}

func (m *Machine) askROMs(c hw.Console, open *Opened, list *secureboot.List) error {
	changed, err := rootpart.AskROMs(words.English, list, m.drivers(), func(question string) (bool, error) {
		err := confirm(c, question)
		if errors.Is(err, errRefused) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil || !changed {
		return err
	}
	return rootpart.KeepList(m.Store, m.Random, open.Secret, list)
}

// drivers are the option ROMs by the event log.
func (m *Machine) drivers() secureboot.Drivers {
	raw, err := m.TPM.EventLog()
	if err != nil {
		return secureboot.Drivers{}
	}
	log, err := pcr.ParseLog(raw)
	if err != nil {
		return secureboot.Drivers{}
	}
	return log.Drivers()
}

// ownList is rootpart.OwnList, and says what is wrong with it.
func (m *Machine) ownList(c hw.Console, open *Opened, lock *rootlock.Lock, s *enroll.State) (*secureboot.List, error) {
	list, damaged, err := rootpart.OwnList(m.Store, open.Secret, lock, s)
	// The boot's own question keeps the list that it enrolls, which finishes the change.
	if damaged != nil && rootpart.KeysUnfinished(m.Store, lock) {
		return nil, fmt.Errorf("%w; the Secure Boot keys are being replaced, and the boot alone can finish that without it: leave the console with `exit`, clear the firmware's keys (Setup Mode), and type the recovery key at the next start", damaged)
	}
	if damaged != nil {
		c.Print(fmt.Sprintf("The list of what the firmware shall hold is damaged, and is made again by the next boot that the TPM opens: %v.\n", damaged))
	}
	return list, err
}
