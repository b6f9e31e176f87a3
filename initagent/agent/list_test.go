package agent

import (
	"bytes"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// damageList changes the list of what the firmware shall hold, and leaves the keys.
func (m *machine) damageList() {
	m.t.Helper()
	box := bytes.Clone(m.rootFiles()[rootpart.ListFile])
	box[len(box)-1] ^= 1
	m.rootFiles()[rootpart.ListFile] = box
	if _, err := m.storedList(); err == nil {
		m.t.Fatal("the list is not damaged")
	}
}

// hasList checks that the list is there, and wants what the firmware holds.
func (m *machine) hasList() {
	m.t.Helper()
	list, err := m.storedList()
	m.must(err)
	state, err := enroll.Observe(&firmware{vars: m.vars})
	m.must(err)
	if list.Bare || enroll.Foreign(state, list) != "" || !list.Names("test_1.efi") || !list.Names(host.ManagerPrefix+"test_1.efi") {
		m.t.Errorf("bare: %v; db %s, images %v", list.Bare, list.Wanted.DB, list.Images())
	}
}

// A damaged list is made again by the boot that the TPM opens, wherever the power is cut
// meanwhile, and the owner is told once. FAULTS 42, 90
func TestListDamaged(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.damageList()
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" || !strings.Contains(m.said.String(), "the list of what the firmware shall hold is damaged") {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	if !slices.Contains(m.kinds(), journal.Healed) {
		t.Errorf("the journal has %v", m.kinds())
	}
	for _, s := range states {
		m.powerOn(s.world)
		m.opensByItself()
		m.hasList()
	}
	m.runs(1)
	if strings.Contains(m.said.String(), "damaged") {
		t.Errorf("it says so again:\n%s", m.said.String())
	}
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	if list, err := m.storedList(); err != nil || !list.Names("test_2.efi") {
		t.Errorf("the list does not have what was staged (%v)", err)
	}
}

// The recovery key restores it where the firmware holds nothing but this machine's own
// keys, with a TPM and without one; the machine is accepted as ever.
func TestListDamagedTyped(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.runs(1)
	m.damageList()
	damaged := m.world(true, nil)
	m.extra = "another firmware"
	m.accepts("is made from what it holds")
	m.hasList()
	m.runs(1)
	m.extra = ""
	// With keys of others in the firmware it is not, and neither is the machine accepted.
	m.powerOn(damaged)
	m.evilMaid()
	m.typed = []string{m.recoveryKey(), "y", "weaker"}
	m.ends("system", "it is made again once")
	if _, err := m.storedList(); err == nil || !strings.Contains(m.printed.String(), "the TPM was left as it is") {
		t.Errorf("a list was made (%v), or the machine accepted:\n%s", err, m.printed.String())
	}
	// Setup Mode is the way out.
	m.powerOn(damaged)
	m.vars = newVariables()
	m.owner = true
	m.ends("system")
	m.owner = false
	m.hasList()
	m.runs(1)
	without := newMachine(t, optionalTPM)
	without.noTPM, without.owner = tpm.ErrAbsent, true
	without.ends("system")
	without.ends("system")
	without.damageList()
	without.ends("system", "is made from what it holds")
	without.hasList()
}

// The console's commands judge by a bare list meanwhile.
func TestListDamagedInConsole(t *testing.T) {
	m := inConsole(t, func(m *machine) { m.damageList(); m.vars = newVariables() })
	r, c := m.console()
	m.types(m.recoveryKey(), "y")
	m.works(r.Unlock(c))
	m.works(r.Enroll(c), "is damaged")
	m.works(r.Lock())
	m.runs(1, "is made from what it holds")
	m.hasList()
}
