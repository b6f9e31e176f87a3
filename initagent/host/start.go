package host

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/rootpart"
)

// ContractOf reads a UKI on the ESP, and the boot contract in it.
func (h *Host) ContractOf(n bls.Name) (c *contract.Contract, image []byte, err error) {
	if err = h.ReadESP(func(files fs.FS) (err error) { image, err = rootpart.ReadUKI(files, n); return err }); err == nil {
		c, _, err = rootpart.Describe(image)
	}
	return c, image, err
}

// RunningImage is the UKI that this boot was started from.
func (h *Host) RunningImage() (*rootpart.Image, error) {
	text, err := h.runningUKI()
	if err != nil {
		return nil, err
	}
	im, err := rootpart.ReadImage(text)
	if err != nil {
		return nil, fmt.Errorf("the UKI on the ESP: %w", err)
	}
	return im, nil
}

// ToldBoot is this boot as it was when the root partition was unlocked, by the
// firmware's event log. That the record has it proves the log. Where the TPM is
// optional and there is no log, it is what the TPM holds: all that is missing then
// is an explanation of what changes, and PCR 4.
func (h *Host) ToldBoot() (policy.Boot, error) {
	log, _, err := h.ReadLog()
	if err == nil {
		return rootpart.Logged(log)
	}
	if h.Contract.TPM == contract.Required {
		return policy.Boot{}, noLog(err)
	}
	now, nerr := h.Chip.TPM.Now()
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
func (h *Host) startOf(boot policy.Boot, running *rootpart.Image) (*rootpart.Start, error) {
	log, _, err := h.ReadLog()
	if err != nil {
		log = nil
	}
	var managers []rootpart.Manager
	if err := h.ReadESP(func(files fs.FS) (err error) { managers, err = rootpart.FindManagers(files); return err }); err != nil {
		return nil, err
	}
	return rootpart.NewStart(log, boot, running, managers, rootpart.Enforces(h.FirmwareKeys)), nil
}

// toldAndNow are ToldBoot, and this boot as the TPM has it now.
func (h *Host) toldAndNow() (told, now policy.Boot, err error) {
	if told, err = h.ToldBoot(); err != nil {
		return told, now, err
	}
	now, err = h.Chip.TPM.Now()
	return told, now, err
}

// ToldStart is startOf of the running boot, once it was unlocked.
func (h *Host) ToldStart() (*rootpart.Start, error) {
	boot, now, err := h.toldAndNow()
	if err != nil {
		return nil, err
	}
	running, err := h.RunningImage()
	if err != nil {
		return nil, err
	}
	if boot.PCR11 != running.PCR11 {
		return nil, errors.New(Meaning(pcr.KernelImage))
	}
	boot.PCR4 = now.PCR4
	return h.startOf(boot, running)
}

// KnownManagers are the boot managers of the ESP by which this machine may start: those
// that the record lets start the running system, or, where it does not tell boot managers
// apart yet, the one that has started this boot. Anybody can lay another one of this
// machine's own on the path that the firmware does not take, as an old one with a known
// hole, and wait for the next record.
func (h *Host) KnownManagers(start *rootpart.Start) []rootpart.Manager {
	if h.Record == nil || !h.Record.Programs {
		return start.Current()
	}
	return slices.DeleteFunc(slices.Clone(start.Managers), func(m rootpart.Manager) bool {
		boots := start.System(start.Running, []rootpart.Manager{m}, nil).Boots
		return !slices.ContainsFunc(boots, func(b policy.Boot) bool { return h.Record.Allows(&b) })
	})
}

// Expected is how a boot of the running UKI starts when nothing was added to it:
// PCR 11 computed from the file on the ESP, PCR 7 from the event log, PCR 12 what this
// UKI and its boot manager leave in it, the others zero. It is an error when this boot
// is not that one, since what is sealed to it could not be unsealed.
func (h *Host) Expected() (*rootpart.Start, error) {
	running, err := h.RunningImage()
	if err != nil {
		return nil, err
	}
	told, now, err := h.toldAndNow()
	if err != nil {
		return nil, err
	}
	if err := running.Foreign(now); err != nil {
		return nil, err
	}
	want := policy.Boot{PCR4: now.PCR4, PCR7: told.PCR7, PCR11: running.PCR11, PCR12: now.PCR12}
	for _, n := range want.Differ(&now) {
		return nil, fmt.Errorf("PCR %d is not what this system alone leaves in it: %s", n, Meaning(n))
	}
	if err := want.Check(); err != nil {
		return nil, err
	}
	return h.startOf(want, running)
}

// Measured is this boot as the TPM has it, for an owner who says that it is good. A
// log that accounts for it is required all the same, where there is one: what nobody
// can explain is not accepted. And nothing from outside the UKI is, whatever the
// owner says.
func (h *Host) Measured() (*rootpart.Start, error) {
	told, now, err := h.toldAndNow()
	if err != nil {
		return nil, err
	}
	told.PCR4 = now.PCR4 // it is left out where the log does not account for it
	if differ := told.Differ(&now); len(differ) > 0 {
		return nil, fmt.Errorf("the event log does not account for PCR %v", differ)
	}
	running, err := h.RunningImage()
	if err != nil {
		return nil, err
	}
	if now.PCR11 != running.PCR11 {
		return nil, errors.New(Meaning(pcr.KernelImage))
	}
	if err := running.Foreign(now); err != nil {
		return nil, err
	}
	if err := now.Check(); err != nil {
		return nil, err
	}
	return h.startOf(now, running)
}

// NothingForeign refuses a boot with something in PCR 12 or 13 that did not come from
// the UKI: neither the TPM nor a person opens the root partition for it. Nobody is
// asked for the recovery key then, so that nobody types it into such a system.
func (h *Host) NothingForeign(boot policy.Boot) error {
	if rootpart.Clean(boot) {
		return nil
	}
	running, err := h.RunningImage()
	if err != nil {
		return fmt.Errorf("whether something from outside the UKI was added to this boot is not known: %w", err)
	}
	if boot.PCR11 != running.PCR11 { // another file has told what is its own
		return errors.New(Meaning(pcr.KernelImage))
	}
	return running.Foreign(boot)
}

// NothingForeignNow is NothingForeign by the TPM's own registers. A machine that does
// without a TPM does without this.
func (h *Host) NothingForeignNow() error {
	if h.Chip.Err != nil {
		return nil
	}
	now, err := h.Chip.TPM.Now()
	if err != nil && h.Contract.TPM == contract.Optional {
		h.Log.Say("WARNING: whether something from outside the UKI was added to this boot is not known: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	return h.NothingForeign(now)
}

// Proven reports whether what the event log says of this boot is what the secret was
// released to.
func (h *Host) Proven(told policy.Boot, record *policy.Record) bool {
	if record != nil {
		return record.Allows(&told)
	}
	allowed, err := h.Lock.Sealed.Allows(told)
	return err == nil && allowed
}

// Guarantee notes what the machine has from now on, where that is new.
func (h *Host) Guarantee(g rootpart.Guarantees, secret *policy.Secret) error {
	if g == h.Had {
		return nil
	}
	if err := g.Keep(h.Random, h.Store, secret); err != nil {
		return err
	}
	h.Had = g
	return nil
}
