package agent

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/tpm"
)

// A chip is the machine's TPM, or the reason why there is none: absence is a
// fact, and everything that needs a TPM asks err first.
type chip struct {
	tpm    *tpm.TPM
	err    error
	capped bool // PCR 15 was extended in this boot
	ended  bool // PCR 11 says that the initramfs phase is over
}

// errNotOpened is why there is no TPM before the boot has come to it.
var errNotOpened = errors.New("the TPM was not opened yet")

// openTPM opens the TPM; that one is missing is a fact and not an error.
func (a *Agent) openTPM() error {
	a.chip.tpm, a.chip.err = a.TPM.Open()
	if a.chip.err != nil && !errors.Is(a.chip.err, tpm.ErrAbsent) {
		a.Log.Say("the TPM cannot be used: %v", a.chip.err)
	}
	a.facts.TPMPresent = a.chip.err == nil
	return nil
}

// enterPhase measures the beginning of the initramfs phase into PCR 11, as
// systemd-pcrphase does.
func (a *Agent) enterPhase() error {
	if a.chip.err != nil {
		return nil // nothing is bound to it
	}
	if err := a.chip.tpm.ExtendText(pcr.KernelImage, pcr.EnterInitrd); err != nil {
		return fmt.Errorf("measure phase %q: %w", pcr.EnterInitrd, err)
	}
	return nil
}

// leavePhase ends the initramfs phase, for the TPM: from here on it releases
// nothing that is bound to it, whoever asks. It comes before anything but
// initagent runs, on every path. A TPM that was not there or did not answer
// when the boot began may be there now, and what runs afterwards could measure
// and unseal at leisure: so it is asked once more, and only one that is absent
// or dead is passed over. A TPM that was told is not told again: what it was told
// is part of what the console's commands account for.
func (a *Agent) leavePhase(word string) error {
	if a.chip.ended {
		return nil
	}
	if a.chip.err != nil {
		a.chip.tpm, a.chip.err = a.TPM.Open()
	}
	switch {
	case errors.Is(a.chip.err, tpm.ErrAbsent):
		return nil
	case a.chip.err != nil:
		return fmt.Errorf("the TPM could not be told that the initramfs phase ends: %w", a.chip.err)
	}
	err := a.chip.tpm.ExtendText(pcr.KernelImage, word)
	if err == nil && !a.chip.capped {
		if err = a.chip.tpm.ExtendText(pcr.SystemID, word); err == nil {
			a.chip.capped = true
		}
	}
	if errors.Is(err, tpm.ErrFailed) {
		a.Log.Say("the TPM is in failure mode: it releases nothing before the machine is switched off and on")
		return nil
	}
	if err != nil {
		return fmt.Errorf("the TPM could not be told that the initramfs phase ends: %w", err)
	}
	a.chip.ended = true
	return nil
}

// readLog reads the firmware's event log.
func (a *Agent) readLog() (*pcr.Log, []byte, error) {
	raw, err := a.TPM.EventLog()
	if err != nil {
		return nil, nil, err
	}
	log, err := pcr.ParseLog(raw)
	return log, raw, err
}

// meaning says what an unexpected value of a PCR comes from.
func meaning(n int) string {
	switch n {
	case pcr.SecureBoot:
		return "the firmware's event log does not account for its Secure Boot state"
	case pcr.KernelImage:
		return "the running UKI is not the file on the ESP"
	case pcr.KernelConfig:
		return "a command line, credential or addon from outside the UKI was added to this boot"
	case pcr.SystemExts:
		return "a system extension from outside the UKI was added to this boot"
	case pcr.SystemID:
		return "a volume was opened in this boot before"
	}
	return "unknown"
}
