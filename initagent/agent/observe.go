package agent

import (
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
)

// observeKeys says how far the Secure Boot keys have come.
func (a *Agent) observeKeys() error {
	state, err := enroll.Observe(a.Variables)
	if err != nil {
		if a.Contract.SecureBoot == contract.Optional {
			a.State.Keys = slot.KeysUnneeded
			return nil
		}
		return err
	}
	a.FirmwareKeys = state
	var wanted secureboot.Wanted
	if a.Left.Pending != nil {
		if wanted, err = secureboot.ParseWanted(a.Left.Pending.Wanted); err != nil {
			return err
		}
	}
	a.State.Keys = slot.JudgeKeys(a.State, a.facts, slot.Firmware{
		Enforces: rootpart.Enforces(state), SetupMode: state.SetupMode == enroll.On, Compared: enroll.Keys(state, wanted),
	})
	return nil
}

// observeRoot looks at the root partition, until it is open.
func (a *Agent) observeRoot() error {
	if a.State.Root == slot.RootOpen {
		return nil
	}
	root, lock, err := rootpart.Look(a.Disks, a.Disk, a.Table)
	a.State.Root, a.Lock = root, lock
	if root == slot.RootAbsent {
		return err
	}
	if err != nil {
		a.facts.Cause = err.Error()
	}
	return nil
}

// observeLoss tells a root partition that was never finished from one that was lost.
func (a *Agent) observeLoss() error {
	if !a.State.Root.Making() && a.State.Root != slot.RootDamaged {
		return nil
	}
	between, err := setup.BetweenBoots(&a.Host)
	if err != nil {
		a.Log.Say("whether the root partition was made before is not known: %v", err)
	}
	judged := slot.JudgeRoot(a.State, slot.Past{Between: between, Unlocked: a.Left.Unlocked, OwnKeys: a.OwnEnforced()})
	if judged == slot.RootDamaged && a.State.Root.Making() {
		a.facts.Cause = "its header is empty, although it was made before"
	}
	a.State.Root = judged
	return nil
}
