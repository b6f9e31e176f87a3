package rescue

import (
	"errors"
	"fmt"

	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// errKeysUnfinished keeps what works by the old keys from a machine that is about to get
// new ones.
var errKeysUnfinished = errors.New("the Secure Boot keys are being replaced: `reseal --new-secret --new-keys` goes on with that, and so does the next start")

// change is what replaces this machine's Secure Boot keys.
func (m *Machine) change(c hw.Console, a *acceptance) *rootpart.KeyChange {
	return &rootpart.KeyChange{
		Machine: m.Machine, Disk: a.disk, Variables: m.Variables, Random: m.Random, Lock: a.lock,
		VolumeKey: a.open.VolumeKey, Secret: a.open.Secret, Date: a.contract.Date(),
		Say: func(format string, args ...any) { c.Print(fmt.Sprintf(format+"\n", args...)) },
	}
}

// mayReplaceKeys says what keeps this machine from new Secure Boot keys, before the
// machine secret is replaced.
func (m *Machine) mayReplaceKeys(a *acceptance) error {
	keys, err := rootpart.StoredKeys(m.Store, a.open.Secret)
	if err != nil {
		return err
	}
	if keys != nil {
		keys.Wipe()
	}
	if keys == nil || !rootpart.Enforces(a.state) || a.state.SetupMode != enrol.Off {
		return errors.New("this machine has no Secure Boot keys of its own that its firmware enforces: use `reseal --new-secret` without --new-keys")
	}
	return nil
}

// newKeys replaces the Secure Boot keys of a machine that has just been accepted as it
// is. The record that allows what PCR 7 will be is written before anything else.
func (m *Machine) newKeys(c hw.Console) error {
	a, err := m.acceptable(c)
	if err != nil {
		return err
	}
	defer a.close()
	c.Print("Making new Secure Boot keys takes a while.\n")
	change := m.change(c, a)
	values, store, err := change.Begin(m.NewKeys, a.state, a.log)
	if err != nil {
		return err
	}
	a.query.Also = values
	if err := m.compose(a); err != nil {
		return err
	}
	if err := m.accept(c, a); err != nil {
		return err
	}
	if err := store(); err != nil {
		return err
	}
	return m.finish(c, change)
}

func (m *Machine) finish(c hw.Console, change *rootpart.KeyChange) error {
	wrote, err := change.Finish(nil, nil)
	if err != nil {
		return err
	}
	if wrote {
		c.Print("The firmware holds the new Secure Boot keys. The next start (`exit` restarts the machine) sees whether it enforces\n" +
			"them, and removes the old ones. If it asks for the recovery key, the firmware measured more than its keys.\n")
	}
	return nil
}

// finishKeys goes on with a replacement of the Secure Boot keys that was cut.
func (m *Machine) finishKeys(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	lock, err := m.locked(p)
	if err != nil {
		return err
	}
	c.Print("The Secure Boot keys are being replaced already: going on with that.\n")
	return m.finish(c, m.change(c, &acceptance{place: p, open: open, lock: lock}))
}
