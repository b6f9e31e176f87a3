package rootlock

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// sealedFor is what a TPM would have made of a secret: nobody here asks one.
func sealedFor(t *testing.T, m *policy.Secret) *policy.Sealed {
	t.Helper()
	s := &policy.Sealed{Version: 1, Kind: policy.KindPCR, SRKName: policy.NameOf([]byte("srk")), Private: []byte("private"),
		PCRs: []int{11}, Branches: []policy.Digest{{1}}}
	if pin := m.PIN(); pin != nil {
		s.Guard(pin.Stretch())
	}
	d, err := s.Policy()
	if err != nil {
		t.Fatal(err)
	}
	template := policy.SealedTemplate(d)
	if m.PIN() != nil {
		template = policy.GuardedTemplate(d)
	}
	public := tpm2.Marshal(template)
	public[len(public)-1] = 32 // its unique field is empty: the size alone
	s.Public = append(public, bytes.Repeat([]byte{5}, 32)...)
	return s
}

// opensByTPM says why a secret, which the TPM has released, does not open the volume.
func (m *made) opensByTPM(d *blocktest.Disk, secret *policy.Secret) error {
	lock, err := look(d)
	if err != nil {
		return err
	}
	volumeKey, err := lock.OpenTPM(d, secret, 1<<20)
	if err == nil && !bytes.Equal(volumeKey, m.volumeKey) {
		err = errors.New("it opens something else")
	}
	return err
}

// A machine gets a PIN, another one, and none again, each with a new secret. At each cut
// the TPM opens by the one before or the one after, the recovery key opens all the time,
// and what it opens knows the PIN that the TPM asks for. Neither the machine secret alone
// nor the PIN alone opens the keyslot. FAULTS 108
func TestPIN(t *testing.T) {
	m := makeVolume(t)
	random := rand.NewChaCha8([32]byte{6})
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Rebind(random, m.disk, m.volumeKey, m.secret, sealedFor(t, m.secret), nil); err != nil {
		t.Fatal(err)
	}
	if lock.HasPIN() || lock.KeptPIN != nil {
		t.Error("a machine without a PIN has one")
	}
	disk := m.disk
	for i, typed := range []string{"1234", "correct horse battery staple", ""} {
		old := *m.secret
		fresh, err := policy.NewSecret(random)
		if err != nil {
			t.Fatal(err)
		}
		if typed != "" {
			pin, err := NewPIN(random, []byte(typed), 64<<20, 1)
			if err != nil {
				t.Fatal(err)
			}
			fresh.SetPIN(pin)
		}
		sealed := sealedFor(t, fresh)
		r := blocktest.Record(disk)
		lock, err := look(r.Disk())
		if err != nil {
			t.Fatal(err)
		}
		replace := func(d block.Device) error {
			if err := lock.ReplaceSecret(random, d, m.volumeKey, NewSecret{Secret: fresh, Recovery: &m.old, Sealed: sealed}); err != nil {
				return err
			}
			return lock.RemoveReplaced(random, d)
		}
		if err := replace(r); err != nil {
			t.Fatal(err)
		}
		_, err = r.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
			return m.consistent(c.Disk, &old, fresh)
		})
		if err != nil {
			t.Errorf("PIN %d: %v", i, err)
		}
		disk, *m.secret = r.Disk(), *fresh
		if err := m.alone(disk, fresh, typed, lock); err != nil {
			t.Errorf("PIN %d: %v", i, err)
		}
		if err := m.opensByTPM(disk, &old); err == nil {
			t.Errorf("PIN %d: the secret before still opens the volume", i)
		}
	}
}

// consistent: the header is that of one of the two secrets, whole.
func (m *made) consistent(d *blocktest.Disk, old, fresh *policy.Secret) error {
	lock, err := look(d)
	if err != nil {
		return err
	}
	volumeKey, secret, err := lock.OpenRecovery(d, m.old.Passphrase(), 1<<20)
	if err != nil {
		return err
	}
	if !bytes.Equal(volumeKey, m.volumeKey) {
		return errors.New("the recovery key opens something else")
	}
	want := old
	if secret.Equal(fresh) {
		want = fresh
	} else if !secret.Equal(old) {
		return errors.New("the recovery key keeps another secret")
	}
	if (want.PIN() == nil) != (secret.PIN() == nil) || want.PIN() != nil && !want.PIN().Equal(secret.PIN()) {
		return errors.New("what the recovery key opens has lost the PIN")
	}
	if lock.HasPIN() != (want.PIN() != nil) {
		return fmt.Errorf("the header says of a PIN: %t", lock.HasPIN())
	}
	return m.opensByTPM(d, want)
}

// alone: one half of what opens the keyslot opens nothing.
func (m *made) alone(d *blocktest.Disk, secret *policy.Secret, typed string, lock *Lock) error {
	if err := m.opensByTPM(d, secret); err != nil {
		return err
	}
	if typed == "" {
		return nil
	}
	dump := *secret // of a TPM that was taken apart, with the disk beside it
	dump.SetPIN(nil)
	if m.opensByTPM(d, &dump) == nil {
		return errors.New("the machine secret opens it without the PIN")
	}
	lock.TakePIN(make([]byte, 64), &dump)
	if dump.PIN() != nil {
		return errors.New("the disk gives the PIN away without the volume key")
	}
	other, err := policy.NewSecret(rand.NewChaCha8([32]byte{9}))
	if err != nil {
		return err
	}
	pin, err := lock.PIN([]byte(typed), 64<<20)
	if err != nil {
		return err
	}
	if !pin.Equal(secret.PIN()) {
		return errors.New("the PIN is stretched otherwise")
	}
	other.SetPIN(pin)
	if m.opensByTPM(d, other) == nil {
		return errors.New("the PIN opens it without the machine secret")
	}
	wrong, err := lock.PIN([]byte(typed+"5"), 64<<20)
	if err != nil {
		return err
	}
	dump.SetPIN(wrong)
	if m.opensByTPM(d, &dump) == nil {
		return errors.New("another PIN opens it")
	}
	if _, err := lock.PIN([]byte(typed), 1<<20); !errors.Is(err, luks2.ErrMemory) {
		return fmt.Errorf("more memory than there is: %v", err)
	}
	return nil
}

// What the TPM is bound to and what opens the keyslot are never of two minds.
func TestPINRefuses(t *testing.T) {
	m := makeVolume(t)
	random := rand.NewChaCha8([32]byte{6})
	without := sealedFor(t, m.secret)
	pin, err := NewPIN(random, []byte("1234"), 64<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.secret.SetPIN(pin)
	with := sealedFor(t, m.secret)
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Rebind(random, m.disk, m.volumeKey, m.secret, without, nil); !errors.Is(err, errOtherPIN) {
		t.Errorf("sealed without the PIN: %v", err)
	}
	m.secret.SetPIN(nil)
	if err := lock.Rebind(random, m.disk, m.volumeKey, m.secret, with, nil); !errors.Is(err, errOtherPIN) {
		t.Errorf("sealed with a PIN that the secret has not: %v", err)
	}
	if _, err := lock.PIN([]byte("1234"), 64<<20); err == nil {
		t.Error("a PIN for a machine that has none")
	}
	for _, short := range []string{"", "123"} {
		if _, err := NewPIN(random, []byte(short), 64<<20, 1); !errors.Is(err, policy.ErrPINLength) {
			t.Errorf("%q: %v", short, err)
		}
	}
}

// What a key derivation has taken is given back before the next one takes as much.
func TestMemoryIsGivenBack(t *testing.T) {
	const memory = 256 << 20 // a PIN takes half
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	before := inUse()
	pin, err := NewPIN(rand.NewChaCha8([32]byte{5}), []byte("1234"), memory, 1)
	if err != nil {
		t.Fatal(err)
	}
	if now := inUse(); now > before+memory/4 {
		t.Errorf("after a new PIN %d MiB are in use, %d before", now>>20, before>>20)
	}
	stretch := pin.Stretch()
	lock := &Lock{Sealed: &policy.Sealed{PIN: &stretch}}
	if _, err := lock.PIN([]byte("1235"), memory); err != nil {
		t.Fatal(err)
	}
	if now := inUse(); now > before+memory/4 {
		t.Errorf("after a PIN was tried %d MiB are in use, %d before", now>>20, before>>20)
	}
}
