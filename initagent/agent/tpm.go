package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/tpm"
)

// Where the kernel keeps the TPM's resource manager and the firmware's log.
const (
	tpmDevice = "/dev/tpmrm0"
	eventLog  = "/sys/kernel/security/tpm0/binary_bios_measurements"
)

// A Chip is the machine's TPM, or the reason why there is none: absence is a
// fact, and everything that needs a TPM asks Err first.
type Chip struct {
	tpm *tpm.TPM
	Err error
}

// OpenTPM opens the machine's TPM.
func OpenTPM() Chip {
	t, err := tpm.Open(tpmDevice)
	return Chip{t, err}
}

// openTPM is OpenTPM as a step: a missing TPM is a fact and no error.
func (a *Agent) openTPM() error {
	a.TPM = OpenTPM()
	if a.TPM.Err != nil && !errors.Is(a.TPM.Err, tpm.ErrAbsent) {
		a.Log.Say("the TPM cannot be used: %v", a.TPM.Err)
	}
	a.facts.TPMPresent = a.TPM.Err == nil
	return nil
}

// Phase measures a phase of the boot into PCR 11, as systemd-pcrphase does.
func (c Chip) Phase(word string) error {
	if c.Err != nil {
		return nil // nothing is bound to it
	}
	if err := c.tpm.ExtendText(pcr.KernelImage, word); err != nil {
		return fmt.Errorf("measure phase %q: %w", word, err)
	}
	return nil
}

// readLog reads the firmware's event log.
func readLog() (*pcr.Log, []byte, error) {
	f, err := os.Open(eventLog)
	if err != nil {
		return nil, nil, fmt.Errorf("read the event log: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, pcr.MaxLog+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the event log: %w", err)
	}
	log, err := pcr.ParseLog(raw)
	return log, raw, err
}

// logged is the boot that an event log tells of, as it is when the initramfs
// phase has begun.
func logged(log *pcr.Log) (policy.Boot, error) {
	values, err := log.PCRs()
	if err != nil {
		return policy.Boot{}, err
	}
	return policy.Boot{
		PCR7:  values[pcr.SecureBoot],
		PCR11: pcr.Phases(values[pcr.KernelImage], pcr.EnterInitrd),
		PCR12: values[pcr.KernelConfig],
		PCR13: values[pcr.SystemExts],
	}, nil
}

// expected is what a boot of the running UKI looks like when nothing was added
// to it: PCR 11 computed from the file on the ESP, PCR 7 from the event log,
// the others zero. It is an error when this boot is not that one, since what is
// sealed to it could not be unsealed.
func (a *Agent) expected() (policy.Boot, error) {
	image, err := a.runningUKI()
	if err != nil {
		return policy.Boot{}, err
	}
	parsed, err := uki.Parse(image)
	if err != nil {
		return policy.Boot{}, fmt.Errorf("the UKI on the ESP: %w", err)
	}
	started, err := pcr.PredictUKI(parsed)
	if err != nil {
		return policy.Boot{}, fmt.Errorf("the UKI on the ESP: %w", err)
	}
	log, _, err := readLog()
	if err != nil {
		return policy.Boot{}, err
	}
	told, err := logged(log)
	if err != nil {
		return policy.Boot{}, err
	}
	want := policy.Boot{PCR7: told.PCR7, PCR11: pcr.Phases(started, pcr.EnterInitrd)}
	now, err := a.TPM.tpm.Now()
	if err != nil {
		return policy.Boot{}, err
	}
	for _, n := range want.Differ(&now) {
		return policy.Boot{}, fmt.Errorf("PCR %d is not what this system alone leaves in it: %s", n, meaning(n))
	}
	return want, want.Check()
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
