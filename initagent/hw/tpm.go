package hw

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/tpm"
)

// ErrNoDevice says that the firmware knows of a TPM 2.0 for which the kernel has no device,
// or has none yet.
var ErrNoDevice = errors.New("the kernel has no device for it: its driver is missing, or failed (see dmesg)")

// LinuxTPM is the kernel's TPM.
type LinuxTPM struct {
	Device string // of the resource manager, /dev/tpmrm0
	Log    string // binary_bios_measurements
	Table  string // the firmware's ACPI table of a TPM 2.0, /sys/firmware/acpi/tables/TPM2
}

// OwnTPM is the TPM of the machine that this program runs on.
func OwnTPM() LinuxTPM {
	return LinuxTPM{
		Device: "/dev/tpmrm0", Log: "/sys/kernel/security/tpm0/binary_bios_measurements",
		Table: "/sys/firmware/acpi/tables/TPM2",
	}
}

// Open implements TPM. That there is no device does not mean that there is no TPM:
// a driver may be missing, or have failed, and somebody with a shell could load it
// again. So one that the firmware knows is never absent.
func (l LinuxTPM) Open() (*tpm.TPM, error) {
	t, err := tpm.Open(l.Device)
	if !errors.Is(err, tpm.ErrAbsent) {
		return t, err
	}
	for _, trace := range []string{l.Table, l.Log} {
		if _, serr := os.Lstat(trace); !errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("the firmware has a TPM 2.0 (%s), and %w", trace, ErrNoDevice)
		}
	}
	return nil, err
}

// EventLog implements TPM.
func (l LinuxTPM) EventLog() ([]byte, error) {
	f, err := os.Open(l.Log)
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, pcr.MaxLog+1))
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	if len(raw) > pcr.MaxLog {
		return nil, fmt.Errorf("read the event log: more than %d bytes", pcr.MaxLog)
	}
	return raw, nil
}
