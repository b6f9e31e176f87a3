package hw

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/initagent/tpm"
)

// A TPM is absent only where the firmware knows none: a driver that is missing or
// has failed can be loaded by anyone who gets a shell, and a command line from outside the UKI
// keeps it away, as the ACPI table and the driver's log with acpi=off. FAULTS 97
func TestAbsentTPM(t *testing.T) {
	// As Linux 6.12 says it on OVMF with a TPM, and without.
	const with = "<6>[    0.000000] efi: EFI v2.7 by EDK II\n<6>[    0.000000] efi: SMBIOS=0x7f7ba000 ACPI=0x7f97e000 ACPI 2.0=0x7f97e014 TPMFinalLog=0x7f9a4000 MEMATTR=0x7e1b1018 TPMEventLog=0x7e1ae018 \n"
	without := strings.ReplaceAll(strings.ReplaceAll(with, "TPMFinalLog=0x7f9a4000 ", ""), "TPMEventLog=0x7e1ae018 ", "")
	const banned = "<5>[    0.000000] Kernel command line: quiet module_blacklist=tpm_crb,tpm_tis initcall_blacklist=tpm_init tpm_tis.force=0\n"
	for _, c := range []struct {
		name     string
		traces   []string
		messages string
		unread   error
		absent   bool
	}{
		{"no trace", nil, without, nil, true},
		{"no trace, and no log in the kernel", nil, "", syscall.ENOSYS, true},
		{"no trace, and a command line", nil, without + banned, nil, true},
		{"a command line that speaks of one", nil, without + "<5>[    0.000000] Kernel command line: TPMFinalLog=0x1\n", nil, true},
		{"an ACPI table", []string{"TPM2"}, with, nil, false},
		{"an event log", []string{"log"}, with, nil, false},
		{"an ACPI table, and drivers that are kept away", []string{"TPM2"}, without + banned, nil, false},
		{"acpi=off", nil, with + "<5>[    0.000000] Kernel command line: quiet acpi=off\n", nil, false},
		{"a log that cannot be read", nil, "", syscall.EPERM, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range c.traces {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := LinuxTPM{Device: filepath.Join(dir, "tpmrm0"), Log: filepath.Join(dir, "log"), Table: filepath.Join(dir, "TPM2"),
				Messages: func() ([]byte, error) { return []byte(c.messages), c.unread }}
			if _, err := l.Open(); err == nil || errors.Is(err, tpm.ErrAbsent) != c.absent || errors.Is(err, ErrNoDevice) == c.absent {
				t.Errorf("it says %v", err)
			}
		})
	}
}
