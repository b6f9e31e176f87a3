package setup_test

import (
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/tpm"
)

// hasList checks that the list is there, and wants what the firmware holds.
func hasList(m *machinetest.Machine) {
	m.T.Helper()
	list, err := m.StoredList()
	m.Must(err)
	state, err := enroll.Observe(&machinetest.Firmware{Vars: m.Vars})
	m.Must(err)
	if list.Bare || enroll.Foreign(state, list) != "" || !list.Names("test_1.efi") || !list.Names(host.ManagerPrefix+"test_1.efi") {
		m.T.Errorf("bare: %v; db %s, images %v", list.Bare, list.Wanted.DB, list.Images())
	}
}

// A damaged list is made again by the boot that the TPM opens, wherever the power is cut
// meanwhile, and the owner is told once. FAULTS 42, 90
func TestListDamaged(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.DamageList()
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" || !strings.Contains(m.Said.String(), "the list of what the firmware shall hold is damaged") {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	if !slices.Contains(m.Kinds(), journal.Healed) {
		t.Errorf("the journal has %v", m.Kinds())
	}
	for _, s := range states {
		m.PowerOn(s.World)
		m.OpensByItself()
		hasList(m)
	}
	m.Runs(1)
	if strings.Contains(m.Said.String(), "damaged") {
		t.Errorf("it says so again:\n%s", m.Said.String())
	}
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	if list, err := m.StoredList(); err != nil || !list.Names("test_2.efi") {
		t.Errorf("the list does not have what was staged (%v)", err)
	}
}

// The recovery key restores it where the firmware holds nothing but this machine's own
// keys, with a TPM and without one; the machine is accepted as ever.
func TestListDamagedTyped(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Runs(1)
	m.DamageList()
	damaged := m.World(true, nil)
	m.Extra = "another firmware"
	m.Accepts("is made from what it holds")
	hasList(m)
	m.Runs(1)
	m.Extra = ""
	// With keys of others in the firmware it is not, and neither is the machine accepted.
	m.PowerOn(damaged)
	m.EvilMaid()
	m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
	m.Ends("system", "it is made again once")
	if _, err := m.StoredList(); err == nil || !strings.Contains(m.Printed.String(), "the TPM was left as it is") {
		t.Errorf("a list was made (%v), or the machine accepted:\n%s", err, m.Printed.String())
	}
	// Setup Mode is the way out.
	m.PowerOn(damaged)
	m.Vars = machinetest.NewVariables()
	m.Owner = true
	m.Ends("system")
	m.Owner = false
	hasList(m)
	m.Runs(1)
	without := machinetest.New(t, machinetest.OptionalTPM)
	without.NoTPM, without.Owner = tpm.ErrAbsent, true
	without.Ends("system")
	without.Ends("system")
	without.DamageList()
	without.Ends("system", "is made from what it holds")
	hasList(without)
}

// The console's commands judge by a bare list meanwhile.
func TestListDamagedInConsole(t *testing.T) {
	m := machinetest.InConsole(t, func(m *machinetest.Machine) { m.DamageList(); m.Vars = machinetest.NewVariables() })
	r, c := m.Console()
	m.Types(m.RecoveryKey(), "y")
	m.Works(r.Unlock(c))
	m.Works(r.Enroll(c), "is damaged")
	m.Works(r.Lock())
	m.Runs(1, "is made from what it holds")
	hasList(m)
}
