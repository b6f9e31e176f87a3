package agent

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// provisioned reports what is wrong with a machine that was just handed over
// for the first time: each guarantee that a first boot without a cut gives.
func (m *machine) provisioned() error {
	for _, check := range []struct {
		name string
		run  func() error
	}{
		{"partitions", m.checkPartitions}, {"Secure Boot", m.checkKeys},
		{"root partition", m.checkRoot}, {"every day", m.checkEveryDay},
	} {
		if err := check.run(); err != nil {
			return fmt.Errorf("%s: %w", check.name, err)
		}
	}
	return nil
}

func (m *machine) checkPartitions() error {
	table, health, err := m.table()
	if err != nil || !health.OK() {
		return fmt.Errorf("table %v, %v", health, err)
	}
	c := m.releases[1].contract
	if !layout.Complete(table, slotSize) {
		return errors.New("the table is not complete")
	}
	s, named := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if s != layout.SlotA || !named {
		return fmt.Errorf("slot %s, its tree named %v", s, named)
	}
	data, err := m.partition(s.SystemNumber())
	if err != nil {
		return err
	}
	tree, err := m.partition(s.VerityNumber())
	if err != nil {
		return err
	}
	return verity.Verify(m.t.Context(), data, tree, c.VerityParams(), c.Root(), func(int64) {})
}

func (m *machine) checkKeys() error {
	list, err := m.storedList()
	if err != nil {
		return err
	}
	state, err := enroll.Observe(&firmware{vars: m.vars})
	if err != nil {
		return err
	}
	if d := enroll.Enforced(state, list.Wanted); len(d) > 0 {
		return fmt.Errorf("the firmware enforces something else: %v", d)
	}
	_, certificates, err := certificatesIn(m.vars)
	if err != nil || len(certificates) != 1 {
		return fmt.Errorf("db has %d certificates (%w)", len(certificates), err)
	}
	signed := 0
	for name, f := range m.esp.files {
		switch {
		case f.now.absent:
		case f.now.unreadable:
			return fmt.Errorf("%s cannot be read", name)
		case strings.HasSuffix(name, ".signing") || strings.HasPrefix(name, firstboot.Name(0)[:len(firstboot.Directory)+5]):
			return fmt.Errorf("%s was left behind", name)
		case bytes.HasPrefix(f.now.data, []byte("MZ")):
			signed++
			if _, err := authenticode.Verify(f.now.data, certificates); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if signed != 3 {
		return fmt.Errorf("%d signed files, want 3", signed)
	}
	return nil
}

// storedList is the list on the root partition, opened by the recovery key.
func (m *machine) storedList() (*secureboot.List, error) {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return nil, err
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		return nil, err
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(m.shown[len(m.shown)-1]), 1<<20)
	if err != nil {
		return nil, err
	}
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	return rootpart.StoredList(store{m}, secret, lock)
}

// checkRoot opens the root partition by the TPM, as a boot would, and by the
// recovery key that was shown last.
func (m *machine) checkRoot() error {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return err
	}
	condition, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		return err
	}
	if condition != bootflow.RootLocked || !lock.Health.Good() {
		return fmt.Errorf("condition %v, copies of the header %v", condition, lock.Health)
	}
	if lock.Sealed == nil || lock.Sealed.Kind != policy.KindNV {
		return fmt.Errorf("sealed as %+v", lock.Sealed)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(m.shown[len(m.shown)-1]), 1<<20)
	if err != nil {
		return fmt.Errorf("the recovery key shown last: %w", err)
	}
	defer luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.volumes[*m.openVolume][rootpart.ListFile])
	if err != nil {
		return err
	}
	_, certificates, err := certificatesIn(m.vars)
	if err != nil || !keys.DB.Certificate.Equal(certificates[0]) {
		return errors.New("the db key that is kept is not the one enrolled")
	}
	if err := rootlock.CheckOwnerSignature(lock.OwnerSignature, volumeKey, certificates); err != nil {
		return err
	}
	chip := tpm.OpenTransport(m.emulator)
	record, err := chip.ReadRecord(lock.Sealed)
	if err != nil {
		return err
	}
	if err := rootlock.CheckFingerprint(record, volumeKey); err != nil {
		return err
	}
	other := func(b policy.Branch) bool { return b.Version != 1 }
	if slices.ContainsFunc(record.Branches, other) || !record.Programs || record.Passing() || record.Floor != m.releases[1].contract.Epoch {
		return fmt.Errorf("record %+v", record)
	}
	indexes, err := chip.Indexes()
	if err != nil || len(indexes) != 1 {
		return fmt.Errorf("NV indexes %v, %w", indexes, err)
	}
	if _, _, err := chip.Unseal(lock.Sealed); err == nil {
		return errors.New("the running system can unseal")
	}
	return chip.Close()
}

// checkEveryDay starts the machine twice more. It asks nothing, shows nothing,
// and the second time writes nothing.
func (m *machine) checkEveryDay() error {
	for day := range 2 {
		m.said.Reset()
		m.printed.Reset()
		shown := len(m.shown)
		m.ops = nil
		if end := m.boot(); end != "system" {
			return fmt.Errorf("the next boot ends in %s:\n%s", end, m.said.String())
		}
		if len(m.shown) > shown || m.printed.Len() > 0 {
			return fmt.Errorf("the next boot says: %s", m.printed.String())
		}
		// Its line in the boot journal is all that an ordinary boot writes.
		if day == 1 && !slices.Equal(m.ops, []string{"root keep " + bootjournal.File}) {
			return fmt.Errorf("an ordinary boot writes: %q", m.ops)
		}
		if m.openVolume == nil {
			return errors.New("the next boot runs without its root partition")
		}
	}
	if f := m.esp.files[path.Join(firstboot.Directory, "keys-0.json")]; f != nil && !f.now.absent {
		return errors.New("what the first boot left is still there")
	}
	return nil
}

func TestProvision(t *testing.T) {
	m := newMachine(t, nil)
	if end := m.run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	if len(m.shown) != 1 || strings.Contains(m.said.String(), m.shown[0]) {
		t.Errorf("recovery keys %q, or it was logged (FAULTS 75)", m.shown)
	}
	t.Logf("%d operations", len(m.ops))
	if err := m.provisioned(); err != nil {
		t.Error(err)
	}
}
