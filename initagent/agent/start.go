package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// runningImage is the UKI that this boot was started from.
func (a *Agent) runningImage() (*rootpart.Image, error) {
	text, err := a.runningUKI()
	if err != nil {
		return nil, err
	}
	im, err := rootpart.ReadImage(text)
	if err != nil {
		return nil, fmt.Errorf("the UKI on the ESP: %w", err)
	}
	return im, nil
}

// toldBoot is this boot as it was when the root partition was unlocked, by the
// firmware's event log. That the record has it proves the log. Where the TPM is
// optional and there is no log, it is what the TPM holds: all that is missing then
// is an explanation of what changes, and PCR 4.
func (a *Agent) toldBoot() (policy.Boot, error) {
	log, _, err := a.readLog()
	if err == nil {
		return rootpart.Logged(log)
	}
	if a.contract.TPM == contract.Required {
		return policy.Boot{}, noLog(err)
	}
	now, nerr := a.chip.tpm.Now()
	if nerr != nil {
		return policy.Boot{}, errors.Join(err, nerr)
	}
	now.PCR15 = pcr.Digest{} // it is extended by the unlock
	return now, nil
}

// noLog explains itself to somebody whose machine cannot be set up.
func noLog(err error) error {
	return fmt.Errorf("the firmware's event log cannot be read (%w), and this system requires a TPM with one: update the firmware or choose another TPM in its setup; a system built with TPM=optional runs without", err)
}

// startOf is how a boot came about. boot must hold what the TPM holds in PCR 4.
func (a *Agent) startOf(boot policy.Boot, running *rootpart.Image) (*rootpart.Start, error) {
	log, _, err := a.readLog()
	if err != nil {
		log = nil
	}
	var managers []rootpart.Manager
	if err := a.readESP(func(files fs.FS) (err error) { managers, err = rootpart.FindManagers(files); return err }); err != nil {
		return nil, err
	}
	return rootpart.NewStart(log, boot, running, managers, rootpart.Enforces(a.firmware)), nil
}

// toldStart is startOf of the running boot, once it was unlocked.
func (a *Agent) toldStart() (*rootpart.Start, error) {
	boot, err := a.toldBoot()
	if err != nil {
		return nil, err
	}
	now, err := a.chip.tpm.Now()
	if err != nil {
		return nil, err
	}
	running, err := a.runningImage()
	if err != nil {
		return nil, err
	}
	if boot.PCR11 != running.PCR11 {
		return nil, errors.New(meaning(pcr.KernelImage))
	}
	boot.PCR4 = now.PCR4
	return a.startOf(boot, running)
}

// knownManagers are the boot managers of the ESP by which this machine may start: those
// that the record lets start the running system, or, where it does not tell boot managers
// apart yet, the one that has started this boot. Anybody can lay another one of this
// machine's own on the path that the firmware does not take, as an old one with a known
// hole, and wait for the next record.
func (a *Agent) knownManagers(start *rootpart.Start) []rootpart.Manager {
	if a.record == nil || !a.record.Programs {
		return start.Current()
	}
	return slices.DeleteFunc(slices.Clone(start.Managers), func(m rootpart.Manager) bool {
		boots := start.System(start.Running, []rootpart.Manager{m}, nil).Boots
		return !slices.ContainsFunc(boots, func(b policy.Boot) bool { return a.record.Allows(&b) })
	})
}

// expected is how a boot of the running UKI starts when nothing was added to it:
// PCR 11 computed from the file on the ESP, PCR 7 from the event log, PCR 12 what this
// UKI and its boot manager leave in it, the others zero. It is an error when this boot
// is not that one, since what is sealed to it could not be unsealed.
func (a *Agent) expected() (*rootpart.Start, error) {
	running, err := a.runningImage()
	if err != nil {
		return nil, err
	}
	told, err := a.toldBoot()
	if err != nil {
		return nil, err
	}
	now, err := a.chip.tpm.Now()
	if err != nil {
		return nil, err
	}
	if err := running.Foreign(now); err != nil {
		return nil, err
	}
	want := policy.Boot{PCR4: now.PCR4, PCR7: told.PCR7, PCR11: running.PCR11, PCR12: now.PCR12}
	for _, n := range want.Differ(&now) {
		return nil, fmt.Errorf("PCR %d is not what this system alone leaves in it: %s", n, meaning(n))
	}
	if err := want.Check(); err != nil {
		return nil, err
	}
	return a.startOf(want, running)
}

// measured is this boot as the TPM has it, for an owner who says that it is good. A
// log that accounts for it is required all the same, where there is one: what nobody
// can explain is not accepted. And nothing from outside the UKI is, whatever the
// owner says.
func (a *Agent) measured() (*rootpart.Start, error) {
	told, err := a.toldBoot()
	if err != nil {
		return nil, err
	}
	now, err := a.chip.tpm.Now()
	if err != nil {
		return nil, err
	}
	told.PCR4 = now.PCR4 // it is left out where the log does not account for it
	if differ := told.Differ(&now); len(differ) > 0 {
		return nil, fmt.Errorf("the event log does not account for PCR %v", differ)
	}
	running, err := a.runningImage()
	if err != nil {
		return nil, err
	}
	if now.PCR11 != running.PCR11 {
		return nil, errors.New(meaning(pcr.KernelImage))
	}
	if err := running.Foreign(now); err != nil {
		return nil, err
	}
	if err := now.Check(); err != nil {
		return nil, err
	}
	return a.startOf(now, running)
}

// nothingForeign refuses a boot with something in PCR 12 or 13 that did not come from
// the UKI: neither the TPM nor a person opens the root partition for it. Nobody is
// asked for the recovery key then, so that nobody types it into such a system.
func (a *Agent) nothingForeign(boot policy.Boot) error {
	if rootpart.Clean(boot) {
		return nil
	}
	running, err := a.runningImage()
	if err != nil {
		return fmt.Errorf("whether something from outside the UKI was added to this boot is not known: %w", err)
	}
	if boot.PCR11 != running.PCR11 { // another file has told what is its own
		return errors.New(meaning(pcr.KernelImage))
	}
	return running.Foreign(boot)
}

// nothingForeignNow is nothingForeign by the TPM's own registers. A machine that does
// without a TPM does without this.
func (a *Agent) nothingForeignNow() error {
	if a.chip.err != nil {
		return nil
	}
	now, err := a.chip.tpm.Now()
	if err != nil && a.contract.TPM == contract.Optional {
		a.Log.Say("WARNING: whether something from outside the UKI was added to this boot is not known: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	return a.nothingForeign(now)
}

// proven reports whether what the event log says of this boot is what the secret was
// released to.
func (a *Agent) proven(told policy.Boot, record *policy.Record) bool {
	if record != nil {
		return record.Allows(&told)
	}
	d, err := told.BranchOver(a.lock.Sealed.PCRs)
	return err == nil && slices.Contains(a.lock.Sealed.Branches, d)
}

// checkFloor reads what the machine has had, once its root partition is open, and
// refuses a system under the floor. Where the TPM has released the secret, what it did
// so by counts as well: the record, or nil where it can hold none. That is noted, which
// is not worth a boot: on a full file system it is noted at a later one. Where a person
// has opened the root partition, nothing is: what is missing stays missing.
func (a *Agent) checkFloor(released bool, record *policy.Record, secret *policy.Secret) error {
	have := rootpart.ReadGuarantees(a.Store, secret)
	a.had = have
	if released {
		if err := a.guarantee(have.Raise(rootpart.Of(record, rootpart.Enforces(a.firmware))), secret); err != nil {
			a.Log.Say("what this machine has had was not noted: %v", err)
		}
	}
	a.state.Floor = max(a.state.Floor, a.had.Floor)
	if a.contract.Epoch < a.had.Floor {
		a.facts.Replaced = true
		return fmt.Errorf("this system's epoch is %d and the floor is %d: %w", a.contract.Epoch, a.had.Floor, rootpart.ErrReplaced)
	}
	return nil
}

// guarantee notes what the machine has from now on, where that is new.
func (a *Agent) guarantee(g rootpart.Guarantees, secret *policy.Secret) error {
	if g == a.had {
		return nil
	}
	if err := g.Keep(a.Random, a.Store, secret); err != nil {
		return err
	}
	a.had = g
	return nil
}

// weaker asks the owner whether the machine may have less than it had.
func (a *Agent) weaker(c hw.Console) func([]string) error {
	return func(lost []string) error { return rootpart.AskWeaker(c, lost, keyTimeout) }
}
