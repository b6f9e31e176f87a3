package hw

import (
	"os"
	"path/filepath"
	"testing"
)

// The level is raised once, and a kernel without one is an error. FAULTS 85
func TestHideMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lockdown")
	if err := hideMemory(file); err == nil {
		t.Error("a kernel without lockdown: no error")
	}
	for before, after := range map[string]string{
		"none [integrity] confidentiality\n": "confidentiality",
		"none integrity [confidentiality]\n": "none integrity [confidentiality]\n", // the kernel refuses to be told twice
	} {
		if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := hideMemory(file); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(file); err != nil || string(text) != after {
			t.Errorf("from %q: %q, %v", before, text, err)
		}
	}
}
