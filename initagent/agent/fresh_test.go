package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/tpm"
)

// stealPending unseals what the first boot has left on the ESP, as somebody does
// who has the machine in hand before its second boot: with any firmware setting, and
// with the UKI's measurements replayed.
func (m *machine) stealPending() (*policy.Sealed, *policy.Secret) {
	m.t.Helper()
	var p *firstboot.Pending
	for name, f := range m.esp.files {
		if strings.HasPrefix(name, firstboot.Directory) && !f.now.absent {
			if q, err := firstboot.Parse(f.now.data); err == nil {
				p = q
			}
		}
	}
	sealed, err := p.SealedSecret()
	m.must(err)
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	m.replayFirstBoot()
	chip := tpm.OpenTransport(m.emulator)
	secret, _, err := chip.Unseal(sealed)
	m.must(err)
	return sealed, secret
}

// replayFirstBoot makes the TPM hold what a start of the first release leaves in it, with
// any firmware setting.
func (m *machine) replayFirstBoot() {
	m.t.Helper()
	m.must(m.emulator.extend(7, pcr.Digest(sha256.Sum256([]byte("Secure Boot is off, any program")))))
	parsed, err := uki.Parse(m.releases[1].uki)
	m.must(err)
	b := newLog()
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".sbat"} {
		data, _ := parsed.Section(name)
		b.event(pcr.KernelImage, pcr.EventIPL, []byte(name+"\x00"))
		b.event(pcr.KernelImage, pcr.EventIPL, data)
	}
	for _, e := range b.events {
		m.must(m.emulator.extend(e.register, e.digest))
	}
	m.must(tpm.OpenTransport(m.emulator).ExtendText(pcr.KernelImage, pcr.EnterInitrd))
}

// Between the first and the second boot the secret is bound to the UKI alone. What
// somebody takes then opens nothing of the finished machine. FAULTS 98
func TestSecretOfTheFirstBoot(t *testing.T) {
	m := newMachine(t, nil)
	if end := m.boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.said.String())
	}
	sealed, stolen := m.stealPending()
	m.ends("system") // the owner goes on, and sees nothing
	m.must(m.provisioned())
	lock, volumeKey, secret := m.unlocked()
	defer clear(volumeKey)
	if secret.Equal(stolen) {
		t.Error("the finished machine lives by the secret that was stolen")
	}
	part, err := m.partition(6)
	m.must(err)
	if _, err := lock.OpenTPM(part, stolen, 1<<20); err == nil {
		t.Error("the stolen secret opens the root partition")
	}
	if lock.Sealed.NVIndex == sealed.NVIndex {
		t.Errorf("both are bound to NV index %#x", sealed.NVIndex)
	}
	chip, err := m.openTPM()
	m.must(err)
	left, err := chip.Indexes()
	m.must(err)
	if len(left) != 1 || left[0].Handle != lock.Sealed.NVIndex {
		t.Errorf("NV indexes %+v are left", left)
	}
}

// filledBetween is a machine whose TPM was filled between its first boot and its second,
// and the secret of the first boot, which somebody has taken.
func filledBetween(t *testing.T) (m *machine, stolen *policy.Secret) {
	t.Helper()
	m = newMachine(t, nil)
	if end := m.boot(); end != "reboot" {
		t.Fatalf("the first boot ends in %s:\n%s", end, m.said.String())
	}
	_, stolen = m.stealPending()
	m.fillTPM()
	return m, stolen
}

// freshOne reports whether a finished machine lives by a secret of its own, in the one
// record that its TPM has room for.
func (m *machine) freshOne(stolen *policy.Secret) error {
	lock, volumeKey, secret := m.unlocked()
	defer clear(volumeKey)
	defer secret.Wipe()
	part, err := m.partition(6)
	m.must(err)
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
	m.ends("system", "no room for a second record")
	m.must(m.provisioned())
	m.must(m.freshOne(stolen))
}

// Cut at any write up to where the root partition is made, the next start finds the keys
// that the firmware has by then, and ends as one without a cut. FAULTS 42, 98
func TestCutRoomForOneRecord(t *testing.T) {
	m, stolen := filledBetween(t)
	states, end := m.record(m.world(true, nil), mrand.New(mrand.NewPCG(61, 62)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	made := slices.IndexFunc(m.ops, func(op string) bool { return strings.HasPrefix(op, "disk") })
	gone := slices.Index(m.ops, "tpm delete index")
	if gone < 0 || made < gone {
		t.Fatalf("the index goes at %d, the root partition is made at %d: %q", gone, made, m.ops)
	}
	between := 0
	for _, s := range states {
		n := 0
		if _, err := fmt.Sscanf(s.how, "cut after operation %d", &n); err != nil || n > made+1 {
			continue
		}
		m.check(s)
		if err := m.freshOne(stolen); err != nil {
			t.Errorf("%s: %v", s.how, err)
		}
		between++
	}
	t.Logf("%d states", between)
}
