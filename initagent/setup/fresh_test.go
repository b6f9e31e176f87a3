package setup_test

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/machinetest"
)

// Between the first and the second boot the secret is bound to the UKI alone. What
// somebody takes then opens nothing of the finished machine. FAULTS 98
func TestSecretOfTheFirstBoot(t *testing.T) {
	m := machinetest.New(t, nil)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
	}
	sealed, stolen := m.StealPending()
	m.Ends("system") // the owner goes on, and sees nothing
	m.Must(m.Provisioned())
	lock, volumeKey, secret := m.Unlocked()
	defer clear(volumeKey)
	if secret.Equal(stolen) {
		t.Error("the finished machine lives by the secret that was stolen")
	}
	part, err := m.Partition(layout.Root)
	m.Must(err)
	if _, err := lock.OpenTPM(part, stolen, 1<<20); err == nil {
		t.Error("the stolen secret opens the root partition")
	}
	if lock.Sealed.NVIndex == sealed.NVIndex {
		t.Errorf("both are bound to NV index %#x", sealed.NVIndex)
	}
	chip, err := m.OpenTPM()
	m.Must(err)
	left, err := chip.Indexes()
	m.Must(err)
	if len(left) != 1 || left[0].Handle != lock.Sealed.NVIndex {
		t.Errorf("NV indexes %+v are left", left)
	}
}

// filledBetween is a machine whose TPM was filled between its first boot and its second,
// and the secret of the first boot, which somebody has taken.
func filledBetween(t *testing.T) (m *machinetest.Machine, stolen *policy.Secret) {
	t.Helper()
	m = machinetest.New(t, nil)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.Said.String())
	}
	_, stolen = m.StealPending()
	m.FillTPM()
	return m, stolen
}

// freshOne reports whether a finished machine lives by a secret of its own, in the one
// record that its TPM has room for.
func freshOne(m *machinetest.Machine, stolen *policy.Secret) error {
	lock, volumeKey, secret := m.Unlocked()
	defer clear(volumeKey)
	defer secret.Wipe()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	if _, err := lock.OpenTPM(part, stolen, 1<<20); err == nil || secret.Equal(stolen) {
		return errors.New("the machine lives by the secret that was stolen")
	}
	if lock.Sealed.Kind != policy.KindNV {
		return fmt.Errorf("sealed as %s", lock.Sealed.Kind)
	}
	return nil
}

// A TPM with room for one record, or one that somebody has filled, does not keep the
// machine at the secret of the first boot. FAULTS 98
func TestRoomForOneRecord(t *testing.T) {
	m, stolen := filledBetween(t)
	m.Ends("system", "no room for a second record")
	m.Must(m.Provisioned())
	m.Must(freshOne(m, stolen))
}

// Cut at any write up to where the root partition is made, the next start finds the keys
// that the firmware has by then, and ends as one without a cut. FAULTS 42, 98
func TestCutRoomForOneRecord(t *testing.T) {
	m, stolen := filledBetween(t)
	states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(61, 62)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	made := slices.IndexFunc(m.Ops, func(op string) bool { return strings.HasPrefix(op, "disk") })
	gone := slices.Index(m.Ops, "tpm delete index")
	if gone < 0 || made < gone {
		t.Fatalf("the index goes at %d, the root partition is made at %d: %q", gone, made, m.Ops)
	}
	between := 0
	for _, s := range states {
		n := 0
		if _, err := fmt.Sscanf(s.How, "cut after operation %d", &n); err != nil || n > made+1 {
			continue
		}
		m.Check(s)
		if err := freshOne(m, stolen); err != nil {
			t.Errorf("%s: %v", s.How, err)
		}
		between++
	}
	t.Logf("%d states", between)
}
