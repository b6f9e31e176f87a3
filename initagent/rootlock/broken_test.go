package rootlock

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/luks2"
)

// bound is a volume that a TPM opens as well.
func bound(t *testing.T, random *rand.ChaCha8) *made {
	t.Helper()
	m := makeVolume(t)
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Rebind(random, m.disk, m.volumeKey, m.secret, sealedFor(t, m.secret), nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// tokenOf returns the one token of a type.
func tokenOf(l *Lock, kind string) (int, luks2.Token) {
	for n, t := range l.Header.Tokens() {
		if t.Type == kind {
			return n, t
		}
	}
	return -1, luks2.Token{}
}

// What is said of the TPM, or of one of two recovery keys, is not understood: the recovery key
// opens the volume all the same, and binds it to the TPM again. Without one that it can
// open by the volume is damaged.
func TestBrokenTokens(t *testing.T) {
	for name, tt := range map[string]struct {
		edit    func(c *luks2.Change, l *Lock) error
		strange bool
	}{
		"the TPM's keyslot removed": {func(c *luks2.Change, l *Lock) error { return c.RemoveKeyslot(l.TPMSlot) }, true},
		"two keyslots": {func(c *luks2.Change, l *Lock) error {
			n, token := tokenOf(l, tpmToken)
			token.Keyslots = append(token.Keyslots, l.Recoveries[0].Keyslot)
			return c.SetToken(n, token)
		}, true},
		"two tokens": {func(c *luks2.Change, l *Lock) error {
			_, token := tokenOf(l, tpmToken)
			_, err := c.AddToken(token)
			return err
		}, true},
		"a recovery token that cannot be read": {func(c *luks2.Change, l *Lock) error {
			_, token := tokenOf(l, luks2.RecoveryTokenType)
			token.Fields[escrowField] = json.RawMessage("7")
			_, err := c.AddToken(token)
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.NewChaCha8([32]byte{7})
			m := bound(t, random)
			edit(t, m.disk, tt.edit)
			lock, err := look(m.disk)
			if err != nil {
				t.Fatal(err)
			}
			if (lock.Strange != nil) != tt.strange || tt.strange != (lock.Sealed == nil) || tt.strange != (lock.TPMSlot < 0) {
				t.Errorf("strange: %v, keyslot %d", lock.Strange, lock.TPMSlot)
			}
			if err := m.opens(m.disk, &m.old); err != nil {
				t.Error(err)
			}
			if err := lock.Rebind(random, m.disk, m.volumeKey, m.secret, sealedFor(t, m.secret), nil); err != nil {
				t.Fatal(err)
			}
			if err := m.opensByTPM(m.disk, m.secret); err != nil || lock.Strange != nil {
				t.Errorf("bound again: %v, %v", err, lock.Strange)
			}
		})
	}
	m := bound(t, rand.NewChaCha8([32]byte{8}))
	edit(t, m.disk, func(c *luks2.Change, l *Lock) error {
		n, token := tokenOf(l, luks2.RecoveryTokenType)
		token.Fields[escrowField] = json.RawMessage("7")
		return c.SetToken(n, token)
	})
	if condition, _, err := Look(m.disk, testSize); condition != bootflow.RootDamaged || err == nil {
		t.Errorf("no recovery key that can be read: %v, %v", condition, err)
	}
}

// edit changes the header as anybody with the disk can.
func edit(t *testing.T, d *blocktest.Disk, change func(c *luks2.Change, l *Lock) error) {
	t.Helper()
	lock, err := look(d)
	if err == nil {
		err = lock.Header.Change(rand.NewChaCha8([32]byte{9}), d, func(c *luks2.Change) error { return change(c, lock) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Tokens that somebody with the disk has added, for the TPM's keyslot and for one that
// another token names, go with the recovery keys that go, and take no keyslot along.
func TestRemoveForgedRecoveries(t *testing.T) {
	random := rand.NewChaCha8([32]byte{10})
	m := bound(t, random)
	lock, err := look(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := luks2.NewRecoveryKey(random)
	if err != nil {
		t.Fatal(err)
	}
	kdf := luks2.KDF{Type: luks2.KDFArgon2id, Time: 1, Memory: 32, CPUs: 1}
	if err := lock.AddRecovery(random, m.disk, m.volumeKey, m.secret, &fresh, kdf); err != nil {
		t.Fatal(err)
	}
	edit(t, m.disk, func(c *luks2.Change, l *Lock) error {
		var failed error
		for _, n := range []int{l.TPMSlot, l.Recoveries[0].Keyslot} {
			_, err := c.AddToken(luks2.RecoveryToken(n))
			failed = errors.Join(failed, err)
		}
		return failed
	})
	if lock, err = look(m.disk); err != nil || len(lock.Recoveries) != 4 {
		t.Fatalf("%d recovery keys, %v", len(lock.Recoveries), err)
	}
	keep, err := lock.RecoveryKeyslot(m.disk, &fresh, 1<<20)
	if err == nil {
		err = lock.RemoveRecoveries(random, m.disk, keep)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(lock.Recoveries) != 1 || lock.Strange != nil {
		t.Errorf("%d recovery keys, strange: %v", len(lock.Recoveries), lock.Strange)
	}
	for _, err := range []error{m.opensByTPM(m.disk, m.secret), m.opens(m.disk, &fresh)} {
		if err != nil {
			t.Error(err)
		}
	}
	if m.opens(m.disk, &m.old) == nil {
		t.Error("the key that was replaced opens")
	}
}
