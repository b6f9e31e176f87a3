package rootlock

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

const testSize = HeaderArea + 1<<20

// made is a finished volume.
type made struct {
	disk      *blocktest.Disk
	secret    *policy.Secret
	volumeKey []byte
	old       luks2.RecoveryKey
}

func makeVolume(t *testing.T) *made {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	m := &made{disk: blocktest.New(testSize, blocktest.Zero)}
	var err error
	if m.secret, err = policy.NewSecret(random); err != nil {
		t.Fatal(err)
	}
	if m.old, err = luks2.NewRecoveryKey(random); err != nil {
		t.Fatal(err)
	}
	lock, volumeKey, err := Make(random, m.disk, Options{
		UUID: "11111111-2222-4333-8444-555555555555", Size: testSize, Memory: 64 << 10, CPUs: 1, Secret: m.secret, Recovery: &m.old,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.volumeKey = volumeKey
	if err := lock.Finish(random, m.disk); err != nil {
		t.Fatal(err)
	}
	return m
}

func look(d *blocktest.Disk) (*Lock, error) {
	condition, lock, err := Look(d, testSize)
	if err == nil && condition != bootflow.RootLocked {
		err = fmt.Errorf("condition %d", condition)
	}
	return lock, err
}

// opens says why a key does not open the volume and what is kept under it.
func (m *made) opens(d *blocktest.Disk, key *luks2.RecoveryKey) error {
	lock, err := look(d)
	if err != nil {
		return err
	}
	volumeKey, secret, err := lock.OpenRecovery(d, key.Passphrase(), 1<<20)
	if err != nil {
		return err
	}
	if string(volumeKey) != string(m.volumeKey) || !secret.Equal(m.secret) {
		return errors.New("it opens something else")
	}
	return nil
}

// Cut anywhere while the recovery key is replaced, one that was shown opens.
func TestReplaceRecoveryCut(t *testing.T) {
	m := makeVolume(t)
	random := rand.NewChaCha8([32]byte{2})
	fresh, err := luks2.NewRecoveryKey(random)
	if err != nil {
		t.Fatal(err)
	}
	kdf := luks2.KDF{Type: luks2.KDFArgon2id, Time: 1, Memory: 32, CPUs: 1}
	add := func(d block.Device, lock *Lock) error {
		return lock.AddRecovery(random, d, m.volumeKey, m.secret, &fresh, kdf)
	}
	r := blocktest.Record(m.disk)
	lock, err := look(r.Disk())
	if err != nil {
		t.Fatal(err)
	}
	if err := add(r, lock); err != nil {
		t.Fatal(err)
	}
	states, err := r.Cuts(blocktest.Options{}, func(c blocktest.Cut) error { return m.opens(c.Disk, &m.old) })
	if err != nil {
		t.Errorf("adding: %v", err)
	}
	both := r.Disk().Clone()
	for _, key := range []*luks2.RecoveryKey{&m.old, &fresh} {
		if err := m.opens(both, key); err != nil {
			t.Errorf("both are there: %v", err)
		}
	}
	remove := func(d block.Device, now *blocktest.Disk) error {
		lock, err := look(now)
		if err != nil {
			return err
		}
		keyslot, err := lock.RecoveryKeyslot(d, &fresh, 1<<20)
		if err != nil {
			return err
		}
		return lock.RemoveRecoveries(random, d, keyslot)
	}
	r = blocktest.Record(both)
	if err := remove(r, r.Disk()); err != nil {
		t.Fatal(err)
	}
	more, err := r.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		if err := m.opens(c.Disk, &fresh); err != nil {
			return err
		}
		// What was cut is finished the next time.
		if err := remove(c.Disk, c.Disk); err != nil {
			return err
		}
		return m.only(c.Disk, &fresh)
	})
	if err != nil {
		t.Errorf("removing: %v", err)
	}
	t.Logf("%d states", states+more)
	if err := m.only(r.Disk(), &fresh); err != nil {
		t.Error(err)
	}
}

func (m *made) only(d *blocktest.Disk, fresh *luks2.RecoveryKey) error {
	lock, err := look(d)
	if err != nil {
		return err
	}
	if len(lock.Recoveries) != 1 || len(lock.Header.Keyslots()) != 1 || len(lock.Header.Tokens()) != 1 {
		return fmt.Errorf("%d recovery keys, %d keyslots, %d tokens", len(lock.Recoveries), len(lock.Header.Keyslots()), len(lock.Header.Tokens()))
	}
	if err := m.opens(d, &m.old); err == nil {
		return errors.New("the old key opens")
	}
	return m.opens(d, fresh)
}

func TestRemoveRecoveryRefuses(t *testing.T) {
	m := makeVolume(t)
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{3})
	if err := lock.RemoveRecovery(random, m.disk, lock.Recoveries[0].Keyslot); !errors.Is(err, errOnlyKey) {
		t.Errorf("the only key: %v", err)
	}
	if err := lock.RemoveRecoveries(random, m.disk, 31); !errors.Is(err, errOnlyKey) {
		t.Errorf("all but one that is not there: %v", err)
	}
	if err := m.opens(m.disk, &m.old); err != nil {
		t.Error(err)
	}
}

// Cut anywhere while it is erased, the volume opens or nothing does; in the end
// it looks as if it was never used.
func TestErase(t *testing.T) {
	m := makeVolume(t)
	r := blocktest.Record(m.disk)
	random := rand.NewChaCha8([32]byte{4})
	if err := EraseKeys(random, r); err != nil {
		t.Fatal(err)
	}
	if err := m.opens(r.Disk(), &m.old); !errors.Is(err, luks2.ErrPassphrase) {
		t.Errorf("without its keyslots: %v", err)
	}
	erased := blocktest.Record(r.Disk().Clone())
	if err := EraseHeader(erased); err != nil {
		t.Fatal(err)
	}
	_, err := erased.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		if err := m.opens(c.Disk, &m.old); err == nil {
			return errors.New("it opens")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if condition, _, err := Look(erased.Disk(), testSize); condition != bootflow.RootBlank || err != nil {
		t.Errorf("condition %d, %v", condition, err)
	}
}

// A recovery key opens on whatever keyboard it is typed, with or without checks, and where
// it does not, the group that is wrong is named.
func TestTypedRecovery(t *testing.T) {
	m := makeVolume(t)
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	if !lock.Checks() {
		t.Error("the header does not say that the key has checks")
	}
	text := string(m.old.Passphrase())
	dvorak := strings.NewReplacer("c", "i", "b", "n", "d", "h", "e", "d", "f", "y", "g", "u", "h", "j", "i", "g", "j", "c",
		"k", "v", "l", "p", "n", "l", "r", "o", "t", "k", "u", "f", "v", ".", "-", "'").Replace(text)
	for _, typed := range []string{text, strings.ToUpper(text), dvorak} {
		key, volumeKey, secret, err := lock.OpenRecoveryKey(m.disk, []byte(typed), 1<<20)
		if err != nil || *key != m.old || string(volumeKey) != string(m.volumeKey) || !secret.Equal(m.secret) {
			t.Errorf("%q does not open it: %v", typed, err)
		}
	}
	slip := []byte(text)
	slip[9] = "cb"[strings.Count(text[9:10], "c")]
	_, _, err = lock.OpenRecovery(m.disk, slip, 1<<20)
	if !errors.Is(err, luks2.ErrPassphrase) || !strings.Contains(err.Error(), "look at group 2 ") {
		t.Errorf("a slip in the second group: %v", err)
	}
	// As an earlier release has made it.
	random := rand.NewChaCha8([32]byte{5})
	old, err := luks2.ParseRecoveryKey([]byte(strings.Repeat("cbdefghi", 8)))
	if err != nil {
		t.Fatal(err)
	}
	kdf := luks2.KDF{Type: luks2.KDFArgon2id, Time: 1, Memory: 32, CPUs: 1}
	if err := lock.AddRecovery(random, m.disk, m.volumeKey, m.secret, &old, kdf); err != nil {
		t.Fatal(err)
	}
	if lock.Checks() {
		t.Error("a key without checks counts as one with them")
	}
	if err := m.opens(m.disk, &old); err != nil {
		t.Errorf("a key without checks: %v", err)
	}
}
