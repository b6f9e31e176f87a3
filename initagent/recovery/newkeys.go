package recovery

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// errKeysUnfinished keeps what works by the old keys from a machine that is about to get
// new ones.
var errKeysUnfinished = errors.New("the Secure Boot keys are being replaced: `reseal --new-secret --new-keys` goes on with that, and so does the next start")

// change is what replaces this machine's Secure Boot keys.
func (m *Machine) change(c hw.Console, a *acceptance) *rootpart.KeyChange {
	return &rootpart.KeyChange{
		Machine: m.Machine, Disk: m.Disk, Variables: m.Variables, Random: m.Random, Lock: a.lock,
		VolumeKey: a.open.VolumeKey, Secret: a.open.Secret, Date: m.Contract.Date(), Log: a.log,
		Say: func(format string, args ...any) { c.Print(fmt.Sprintf(format+"\n", args...)) },
		Admit: func(values []pcr.Digest) error {
			a.query.Also = values
			err := m.compose(a)
			if err == nil {
				err = m.bind(a)
			}
			return err
		},
	}
}

// makeKeys makes new Secure Boot keys for a machine whose secret is about to be replaced,
// and a record that allows what PCR 7 will be with them. Nothing is written.
func (m *Machine) makeKeys(c hw.Console, a *acceptance) (*rootpart.NewKeys, error) {
	if !rootpart.Enforces(a.state) || a.state.SetupMode != enroll.Off {
		return nil, errors.New("this machine has no Secure Boot keys of its own that its firmware enforces: use `reseal --new-secret` without --new-keys")
	}
	c.Print("Making new Secure Boot keys takes a while.\n")
	keys, err := m.change(c, a).Begin(m.NewKeys, a.state)
	if err != nil {
		return nil, err
	}
	a.query.Also = keys.Values
	if err := m.compose(a); err != nil {
		keys.Wipe()
		return nil, err
	}
	return keys, nil
}

// finishKeys goes on with new Secure Boot keys of a machine that was accepted as it is.
func (m *Machine) finishKeys(c hw.Console, a *acceptance) error {
	wrote, err := m.change(c, a).Finish(nil)
	if err != nil {
		return err
	}
	if wrote {
		c.Print("The firmware holds the new Secure Boot keys. The next start (`exit` restarts the machine) sees whether it enforces\n" +
			"them, and removes the old ones. If it asks for the recovery key, the firmware measured more than its keys.\n")
	}
	return m.note(a)
}

// goOnWithKeys goes on with a replacement of the Secure Boot keys that was cut.
func (m *Machine) goOnWithKeys(c hw.Console) error {
	c.Print("The Secure Boot keys are being replaced already: going on with that.\n")
	return m.accepting(c, true, "Go on with that, and accept this machine as it is now?\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware).", m.finishKeys)
}
