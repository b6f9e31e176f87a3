package agent

import (
	"fmt"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// checkFloor reads what the machine has had, once its root partition is open, and
// refuses a system under the floor. Where the TPM has released the secret, what it did
// so by counts as well: the record, or nil where it can hold none. That is noted, which
// is not worth a boot: on a full file system it is noted at a later one. Where a person
// has opened the root partition, nothing is: what is missing stays missing.
func (a *Agent) checkFloor(released bool, record *policy.Record, secret *policy.Secret) error {
	have := rootpart.ReadGuarantees(a.Store, secret)
	a.Had = have
	if released {
		if err := a.Guarantee(have.Raise(rootpart.Of(record, rootpart.Enforces(a.FirmwareKeys))), secret); err != nil {
			a.Log.Say("what this machine has had was not noted: %v", err)
		}
	}
	a.State.Floor = max(a.State.Floor, a.Had.Floor)
	if a.Contract.Epoch < a.Had.Floor {
		a.facts.Replaced = true
		return fmt.Errorf("this system's epoch is %d and the floor is %d: %w", a.Contract.Epoch, a.Had.Floor, rootpart.ErrReplaced)
	}
	return nil
}

// weaker asks the owner whether the machine may have less than it had.
func (a *Agent) weaker(c hw.Console) func([]string) error {
	return func(lost []string) error { return rootpart.AskWeaker(c, lost, keyTimeout) }
}
