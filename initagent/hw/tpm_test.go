package hw

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/initagent/tpm"
)

// A TPM is absent only where the firmware knows none: a driver that is missing or
// has failed can be loaded by whoever gets a shell. FAULTS 97
func TestAbsentTPM(t *testing.T) {
	for _, c := range []struct {
		name   string
		traces []string
		absent bool
	}{{"no trace", nil, true}, {"an ACPI table", []string{"TPM2"}, false}, {"an event log", []string{"log"}, false}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range c.traces {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := LinuxTPM{Device: filepath.Join(dir, "tpmrm0"), Log: filepath.Join(dir, "log"), Table: filepath.Join(dir, "TPM2")}
			if _, err := l.Open(); err == nil || errors.Is(err, tpm.ErrAbsent) != c.absent {
				t.Errorf("it says %v", err)
			}
		})
	}
}
