package hw

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/tpm"
)

// ErrNoDevice says that the firmware knows of a TPM 2.0 for which the kernel has no device,
// or has none yet.
var ErrNoDevice = errors.New("the kernel has no device for it: its driver is missing, or failed (see dmesg), or the kernel command line keeps it away")

// LinuxTPM is the kernel's TPM.
type LinuxTPM struct {
	Device string // of the resource manager, /dev/tpmrm0
	Log    string // binary_bios_measurements
	Table  string // the firmware's ACPI table of a TPM 2.0, /sys/firmware/acpi/tables/TPM2
	// Messages returns the kernel's own log.
	Messages func() ([]byte, error)
}

// OwnTPM is the TPM of the machine that this program runs on.
func OwnTPM() LinuxTPM {
	return LinuxTPM{
		Device: "/dev/tpmrm0", Log: "/sys/kernel/security/tpm0/binary_bios_measurements",
		Table: "/sys/firmware/acpi/tables/TPM2", Messages: KernelLog,
	}
}

// finalLog is how the kernel's log has the firmware's event log of what it measures late
// (drivers/firmware/efi/efi.c, common_tables; EFI_TCG2_FINAL_EVENTS_TABLE of the TCG EFI
// Protocol Specification 1.00, section 7). It is there whatever the command line says.
var finalLog = regexp.MustCompile(`(?m)\befi: .*\bTPMFinalLog=0x`)

// Open implements TPM. That there is no device does not mean that there is no TPM:
// a driver may be missing, or have failed, and somebody with a shell could load it
// again; and a command line from outside the UKI keeps any driver away (module_blacklist=,
// initcall_blacklist=), and with acpi=off the table and the log of the driver, too. So one that
// the firmware knows is never absent.
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
	messages, lerr := l.Messages()
	switch {
	case finalLog.Match(messages):
		return nil, fmt.Errorf("the firmware has a TPM 2.0 (TPMFinalLog in the kernel's log), and %w", ErrNoDevice)
	case lerr != nil && !errors.Is(lerr, errors.ErrUnsupported): // a kernel without a log has no trace in it
		return nil, fmt.Errorf("whether the firmware has a TPM 2.0 is not known, since the kernel's log cannot be read (%w), and %w", lerr, ErrNoDevice)
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
