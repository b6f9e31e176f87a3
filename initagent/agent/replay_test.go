package agent

import (
	"bytes"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// emptyHeader makes the root partition look as if it was never used.
func (m *machine) emptyHeader() {
	m.t.Helper()
	part, err := m.partition(layout.RootNumber)
	m.must(err)
	_, err = part.WriteAt(make([]byte, rootlock.HeaderArea), 0)
	m.must(err)
	m.must(part.Sync())
}

// recordless is a machine whose TPM has no room for the record, once it is in use, and
// what lay on its ESP between its first boot and its second.
func recordless(t *testing.T) (m *machine, pending []byte, sealed *policy.Sealed, stolen *policy.Secret) {
	t.Helper()
	m = newMachine(t, nil)
	m.fillTPM()
	if end := m.boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.said.String())
	}
	for _, f := range m.esp.files {
		if _, err := firstboot.Parse(f.now.data); err == nil && !f.now.absent {
			pending = bytes.Clone(f.now.data)
		}
	}
	sealed, stolen = m.stealPending()
	m.ends("system")
	lock, _, _ := m.unlocked()
	if lock.Sealed.Kind != policy.KindPCR || lock.Sealed.Resets != 0 || sealed.Kind != policy.KindPCR || sealed.Resets == 0 {
		t.Fatalf("sealed as %+v, and before as %+v", lock.Sealed, sealed)
	}
	return m, pending, sealed, stolen
}

// Without a record in the TPM a machine is made again from a copy of what its first boot
// has left: for a few starts, and never by a secret that anybody has had. FAULTS 43, 66, 98
func TestReplayedPending(t *testing.T) {
	m, pending, _, stolen := recordless(t)
	first := m.machineSecret()
	m.emptyHeader()
	m.plantPending(pending)
	soon := m.world(true, nil)
	m.ends("system")
	if len(m.shown) != 2 {
		t.Fatalf("%d recovery keys were shown: this proves nothing", len(m.shown))
	}
	if second := m.machineSecret(); second.Equal(stolen) || second.Equal(first) {
		t.Error("the machine was made again with a secret of before")
	}
	m.powerOn(soon)
	m.starts(40)
	m.ends("recovery", "its header is empty, although it was made before")
	if len(m.shown) != 1 {
		t.Errorf("%d recovery keys were shown", len(m.shown))
	}
	// The machine that was not tampered with does not notice that its starts are over.
	m, _, _, _ = recordless(t)
	m.starts(40)
	m.runs(1)
}

// Somebody has kept a copy of what lay on the ESP, and has the machine later: its Secure
// Boot keys are under a secret that the TPM releases no more. FAULTS 98
func TestKeptPending(t *testing.T) {
	m, _, sealed, _ := recordless(t)
	replay := func() error {
		m.must(m.emulator.powerOn(m.world(true, nil).chip))
		m.replayFirstBoot()
		_, _, err := tpm.OpenTransport(m.emulator).Unseal(sealed)
		return err
	}
	if err := replay(); err != nil {
		t.Fatalf("%v: this proves nothing", err)
	}
	m.starts(40)
	if err := replay(); err == nil || !strings.Contains(err.Error(), "those are over") {
		t.Errorf("the secret of the first boot: %v", err)
	}
}

// starts switches the machine on so often.
func (m *machine) starts(n int) {
	m.t.Helper()
	for range n {
		m.must(m.emulator.powerOn(m.world(true, nil).chip))
		m.chipChanged = true
	}
}
