package agent

import (
	"fmt"

	"halogenos.internal/initagent/tpm"
)

// tpmDevice is the kernel's resource manager of the first TPM.
const tpmDevice = "/dev/tpmrm0"

// phasePCR is where the boot's phases are measured (systemd's TPM2 PCR
// measurements, "PCR 11").
const phasePCR = 11

// chip is the machine's TPM. Absence is a fact, not a nil pointer: without one
// there is nothing to measure into, and nothing that could be unsealed.
type chip struct {
	tpm *tpm.TPM
	err error // why there is none
}

// OpenTPM opens the machine's TPM.
func OpenTPM() Measurer {
	t, err := tpm.Open(tpmDevice)
	return chip{t, err}
}

// Present implements Measurer.
func (c chip) Present() bool { return c.err == nil }

// Phase implements Measurer.
func (c chip) Phase(word string) error {
	if c.err != nil {
		return nil
	}
	if err := c.tpm.ExtendText(phasePCR, word); err != nil {
		return fmt.Errorf("measure phase %q: %w", word, err)
	}
	return nil
}
