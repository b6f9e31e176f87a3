package agent_test

import (
	"bytes"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// emptyHeader makes the root partition look as if it was never used.
func emptyHeader(m *machinetest.Machine) {
	m.T.Helper()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	_, err = part.WriteAt(make([]byte, rootlock.HeaderArea), 0)
	m.Must(err)
	m.Must(part.Sync())
}

// recordless is a machine whose TPM has no room for the record, once it is in use, and
// what lay on its ESP between its first boot and its second.
func recordless(t *testing.T) (m *machinetest.Machine, pending []byte, sealed *policy.Sealed, stolen *policy.Secret) {
	t.Helper()
	m = machinetest.New(t, nil)
	m.FillTPM()
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
	}
	for _, f := range m.ESP.Files {
		if _, err := firstboot.Parse(f.Now.Data); err == nil && !f.Now.Absent {
			pending = bytes.Clone(f.Now.Data)
		}
	}
	sealed, stolen = m.StealPending()
	m.Ends("system")
	lock, _, _ := m.Unlocked()
	if lock.Sealed.Kind != policy.KindPCR || lock.Sealed.Resets != 0 || sealed.Kind != policy.KindPCR || sealed.Resets == 0 {
		t.Fatalf("sealed as %+v, and before as %+v", lock.Sealed, sealed)
	}
	return m, pending, sealed, stolen
}

// Without a record in the TPM a machine is made again from a copy of what its first boot
// has left: for a few starts, and never by a secret that anybody has had. FAULTS 43, 66, 98
func TestReplayedPending(t *testing.T) {
	m, pending, _, stolen := recordless(t)
	first := m.MachineSecret()
	emptyHeader(m)
	m.PlantPending(pending)
	soon := m.World(true, nil)
	m.Ends("system")
	if len(m.Shown) != 2 {
		t.Fatalf("%d recovery keys were shown: this proves nothing", len(m.Shown))
	}
	if second := m.MachineSecret(); second.Equal(stolen) || second.Equal(first) {
		t.Error("the machine was made again with a secret of before")
	}
	m.PowerOn(soon)
	starts(m, 40)
	m.Ends("recovery", "its header is empty, although it was made before")
	if len(m.Shown) != 1 {
		t.Errorf("%d recovery keys were shown", len(m.Shown))
	}
	// The machine that was not tampered with does not notice that its starts are over.
	m, _, _, _ = recordless(t)
	starts(m, 40)
	m.Runs(1)
}

// Somebody has kept a copy of what lay on the ESP, and has the machine later: its Secure
// Boot keys are under a secret that the TPM releases no more. FAULTS 98
func TestKeptPending(t *testing.T) {
	m, _, sealed, _ := recordless(t)
	replay := func() error {
		m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
		m.ReplayFirstBoot()
		_, _, err := tpm.OpenTransport(m.Emulator).Unseal(sealed)
		return err
	}
	if err := replay(); err != nil {
		t.Fatalf("%v: this proves nothing", err)
	}
	starts(m, 40)
	if err := replay(); err == nil || !strings.Contains(err.Error(), "those are over") {
		t.Errorf("the secret of the first boot: %v", err)
	}
}

// starts switches the machine on so often.
func starts(m *machinetest.Machine, n int) {
	m.T.Helper()
	for range n {
		m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
		m.ChipChanged = true
	}
}
