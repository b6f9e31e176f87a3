package agent

import (
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

// errNotOpened is why there is no TPM before the boot has come to it.
var errNotOpened = errors.New("the TPM was not opened yet")

// tpmTimeout is how long a TPM that the firmware knows may take to show itself.
const tpmTimeout = 5 * time.Second

// openTPM opens the TPM; that one is missing is a fact and not an error. A driver that
// is a module may have to wait for the bus that its TPM is at.
func (a *Agent) openTPM() error {
	for start := a.Now(); ; {
		a.Chip.TPM, a.Chip.Err = a.TPM.Open()
		if !errors.Is(a.Chip.Err, hw.ErrNoDevice) || a.Now().Sub(start) > tpmTimeout {
			break
		}
		if tried, err := a.Kernel.Coldplug(a.Way); err != nil || tried == 0 {
			a.Sleep(20 * time.Millisecond)
		}
	}
	a.facts.TPMPresent = a.Chip.Err == nil
	if a.Chip.Err != nil && !errors.Is(a.Chip.Err, tpm.ErrAbsent) {
		a.faulty(a.Chip.Err)
	}
	return nil
}

// faulty goes on without a TPM that is there and does not work.
func (a *Agent) faulty(err error) {
	a.Chip.Err = err
	a.facts.TPMPresent, a.facts.TPMFault = false, err.Error()
	a.Log.Say("the TPM cannot be used: %v", err)
}

// enterPhase measures the beginning of the initramfs phase into PCR 11, as
// systemd-pcrphase does.
func (a *Agent) enterPhase() error {
	if a.Chip.Err != nil {
		return nil // nothing is bound to it
	}
	err := a.Chip.TPM.ExtendText(pcr.KernelImage, pcr.EnterInitrd)
	if err != nil {
		err = fmt.Errorf("measure phase %q: %w", pcr.EnterInitrd, err)
	}
	if err != nil && a.Contract.TPM == contract.Optional {
		a.faulty(err)
		return nil
	}
	return err
}
