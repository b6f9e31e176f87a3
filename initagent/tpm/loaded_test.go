package tpm

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// loaded counts the transient objects in the TPM.
func loaded(t *testing.T, e *emulator) int {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 16}.Execute(e.raw)
	if err != nil {
		t.Fatal(err)
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return len(handles.Handle)
}

// TestNothingStaysLoaded binds a volume to a TPM that did not seal its secret, as the owner
// of a machine with a new mainboard does. A TPM has room for three objects, so what
// was looked at in vain must not stay in it.
// FAULTS 71
func TestNothingStaysLoaded(t *testing.T) {
	old := provision(t, "uki")
	m := &machine{emulator: startTPM(t)}
	m.boot("uki")
	c := m.open()
	defer closed(t, c)
	for range 4 {
		if _, _, err := c.Unseal(old.sealed); !errors.Is(err, ErrChanged) {
			t.Fatalf("unseal with another TPM: %v; want %v", err, ErrChanged)
		}
		if _, err := c.ReadRecord(old.sealed); !errors.Is(err, ErrChanged) {
			t.Fatalf("record of another TPM: %v; want %v", err, ErrChanged)
		}
	}
	if n := loaded(t, m.emulator); n != 0 {
		t.Errorf("%d objects were left in the TPM", n)
	}
	key, err := old.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	index, err := c.Define(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteRecord(index.Handle, key, old.record); err != nil {
		t.Fatal(err)
	}
	sealed, err := c.Seal(old.secret, index)
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := c.Unseal(sealed)
	if err != nil || !secret.Equal(old.secret) {
		t.Errorf("what the new TPM sealed: %v", err)
	}
	if n := loaded(t, m.emulator); n > 1 {
		t.Errorf("%d objects are in the TPM; want the storage root key at most", n)
	}
}
