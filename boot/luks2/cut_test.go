package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

var fresh = []byte("the secret of the next boot")

// change is an operation and what must hold whenever it is cut.
type change struct {
	apply func(d block.Device, key []byte) error
	check func(d *blocktest.Disk, key []byte) error
}

// openCut opens what a cut left; one copy is always good.
func openCut(d *blocktest.Disk) (*Header, error) {
	h, health, err := Open(d, testSize)
	if err != nil {
		return nil, err
	}
	if health.Primary != nil && health.Secondary != nil {
		return nil, fmt.Errorf("no copy is good: %+v", health)
	}
	return h, nil
}

// unlocks says why a passphrase does not open the volume.
func unlocks(h *Header, d *blocktest.Disk, passphrase, key []byte) error {
	got, _, err := h.Unlock(d, passphrase, testMemory)
	if err == nil && !bytes.Equal(got, key) {
		err = ErrVolumeKey
	}
	return err
}

func lists(h *Header, slot int) bool { return h.meta.keyslot(slot) != nil }

// replacing puts fresh where tpmSecret was, with the token.
func replacing(old []byte) change {
	return change{
		apply: func(d block.Device, key []byte) error {
			h, _, err := Open(d, testSize)
			if err != nil {
				return err
			}
			return h.Change(testRand(20), d, func(c *Change) error {
				slot, err := c.AddKeyslot(key, fresh, PBKDF2())
				if err != nil {
					return err
				}
				if err := c.SetToken(0, Token{Type: "halogen-tpm2", Keyslots: []int{slot}}); err != nil {
					return err
				}
				return c.RemoveKeyslot(0)
			})
		},
		check: func(d *blocktest.Disk, key []byte) error {
			h, err := openCut(d)
			if err != nil {
				return err
			}
			if lists(h, 2) {
				if err := unlocks(h, d, fresh, key); err != nil {
					return fmt.Errorf("the new keyslot is listed: %w", err)
				}
			} else if err := unlocks(h, d, tpmSecret, key); err != nil {
				return fmt.Errorf("there is no new keyslot yet: %w", err)
			}
			if !lists(h, 0) {
				left := make([]byte, len(old))
				if _, err := d.ReadAt(left, 2*headerSize); err != nil {
					return err
				}
				for at := 0; at < len(old); at += areaSector {
					if bytes.Equal(left[at:at+areaSector], old[at:at+areaSector]) {
						return fmt.Errorf("the old keyslot is gone, its key material at %d is not", at)
					}
				}
			}
			token := h.Tokens()[0]
			if len(token.Keyslots) != 1 || !lists(h, token.Keyslots[0]) || (token.Keyslots[0] == 2) != lists(h, 2) {
				return fmt.Errorf("token is for keyslots %v", token.Keyslots)
			}
			return nil
		},
	}
}

// heal is the recovery after a cut: what is left over is healed.
func heal(r *blocktest.Recorder) error {
	h, _, err := Open(r, testSize)
	if err != nil {
		return err
	}
	return h.Heal(testRand(21), r)
}

func TestCutChange(t *testing.T) {
	clean, key := newVolume(t)
	c := replacing(readBytes(t, clean, 2*headerSize, VolumeKeySize*stripes))
	r := blocktest.Record(clean)
	if err := c.apply(r, key); err != nil {
		t.Fatal(err)
	}
	states, err := r.Cuts(blocktest.Options{}, func(cut blocktest.Cut) error { return c.check(cut.Disk, key) })
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states", states)
	if states < 30 {
		t.Errorf("only %d states were looked at", states)
	}
	if err := c.check(r.Disk(), key); err != nil || lists(mustOpen(t, r), 0) {
		t.Errorf("uncut: %v", err)
	}
}

// The header writes alone, with the recovery cut as well.
func TestCutChangeAndRecovery(t *testing.T) {
	clean, key := newVolume(t)
	r := blocktest.Record(clean)
	h := mustOpen(t, r)
	err := h.Change(testRand(22), r, func(c *Change) error {
		return c.SetToken(1, Token{Type: "x", Fields: map[string]json.RawMessage{"y": []byte(`"` + strings.Repeat("y", 8000) + `"`)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	states, err := r.Nested(blocktest.Options{}, heal, func(cut blocktest.Cut) error {
		h, err := openCut(cut.Disk)
		if err != nil {
			return err
		}
		return unlocks(h, cut.Disk, tpmSecret, key)
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states", states)
}

// A volume being made is none, or one that opens.
func TestCutFormat(t *testing.T) {
	old := blocktest.New(testSize, blocktest.Hostile)
	_, oldKey := formatted(t, old, testOptions())
	o := testOptions()
	o.Label = "new"
	r := blocktest.Record(old)
	_, key, err := Format(testRand(23), r, o, func(c *Change, volumeKey []byte) error {
		_, err := c.AddKeyslot(volumeKey, fresh, PBKDF2())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	states, err := r.Cuts(blocktest.Options{Exhaustive: 64, Random: 16, Seed: 2}, func(cut blocktest.Cut) error {
		h, err := openCut(cut.Disk)
		switch {
		case errors.Is(err, ErrNotLUKS), errors.Is(err, ErrDamaged):
			seen["none"]++
			return nil
		case err != nil:
			return err
		case h.Label == "new":
			seen["new"]++
			return unlocks(h, cut.Disk, fresh, key)
		}
		seen["old"]++
		if err := unlocks(h, cut.Disk, tpmSecret, oldKey); err != nil && !errors.Is(err, ErrPassphrase) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if seen["none"] == 0 || seen["new"] == 0 || seen["old"] == 0 {
		t.Errorf("of %d states were %v", states, seen)
	}
	t.Logf("%d states: %v", states, seen)
}

// forgetful is a device on which one sync does nothing.
type forgetful struct {
	*blocktest.Recorder
	syncs, forgets int
}

func (f *forgetful) Sync() error {
	if f.syncs++; f.syncs == f.forgets {
		return nil
	}
	return f.Recorder.Sync()
}

// TestMutants takes one sync away: the checks must notice, or they check
// nothing.
func TestMutants(t *testing.T) {
	clean, key := newVolume(t)
	c := replacing(readBytes(t, clean, 2*headerSize, VolumeKeySize*stripes))
	// 1: key material. 2, 3: the header with both keyslots. 4: the material is
	// overwritten. 5, 6: the last header. Without 3 the overwriting may come
	// before the second copy, which the first one makes good; without 6
	// nothing follows.
	for _, sync := range []int{1, 2, 4, 5} {
		f := &forgetful{Recorder: blocktest.Record(clean), forgets: sync}
		if err := c.apply(f, key); err != nil {
			t.Fatal(err)
		}
		if f.syncs != 6 {
			t.Fatalf("%d syncs, want 6", f.syncs)
		}
		if _, err := f.Cuts(blocktest.Options{}, func(cut blocktest.Cut) error { return c.check(cut.Disk, key) }); err == nil {
			t.Errorf("without sync %d everything looks right", sync)
		}
	}
}

func TestFailedWrites(t *testing.T) {
	clean, key := newVolume(t)
	c := replacing(readBytes(t, clean, 2*headerSize, VolumeKeySize*stripes))
	faults := 0
	for k := 1; ; k++ {
		failed := false
		for _, f := range []blocktest.Fault{{Write: k}, {Sync: k}, {Write: k, Sticky: true}, {Sync: k, Sticky: true}} {
			f.Err = errors.New("medium error")
			r := blocktest.Record(clean)
			r.Inject(f)
			err := c.apply(r, key)
			if err == nil {
				continue
			}
			failed = true
			faults++
			if !errors.Is(err, f.Err) {
				t.Errorf("fault %+v: %v", f, err)
			}
			if err := c.check(r.Disk(), key); err != nil {
				t.Errorf("fault %+v: %v", f, err)
			}
		}
		if !failed {
			break
		}
	}
	if faults < 20 {
		t.Errorf("%d faults", faults)
	}
	// Half written, a header is to be opened again before anything else.
	r := blocktest.Record(clean)
	h := mustOpen(t, r)
	r.Inject(blocktest.Fault{Write: 2, Err: errors.New("medium error")})
	add := func(c *Change) error { _, err := c.AddKeyslot(key, fresh, PBKDF2()); return err }
	if err := h.Change(testRand(24), r, add); err == nil {
		t.Fatal("no error")
	}
	if h.Change(testRand(24), r, add) == nil || h.Heal(testRand(24), r) == nil {
		t.Error("a header that was written in part is changed further")
	}
	h, health, err := Open(r, testSize)
	if err != nil || health.Good() {
		t.Fatalf("%+v, %v", health, err)
	}
	if err := h.Change(testRand(24), r, add); err != nil {
		t.Error(err)
	}
	opens(t, mustOpen(t, r), r, fresh, key, 2)
}
