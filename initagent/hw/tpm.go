package hw

import (
	"fmt"
	"io"
	"os"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/tpm"
)

// LinuxTPM is the kernel's TPM.
type LinuxTPM struct {
	Device string // of the resource manager, /dev/tpmrm0
	Log    string // binary_bios_measurements
}

// Open implements TPM.
func (l LinuxTPM) Open() (*tpm.TPM, error) { return tpm.Open(l.Device) }

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
