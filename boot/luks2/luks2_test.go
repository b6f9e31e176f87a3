package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

const (
	testUUID   = "01234567-89ab-cdef-0123-456789abcdef"
	testSize   = 17 << 20
	testMemory = 64 << 20
)

var (
	tpmSecret = []byte("a secret that a TPM gave away")
	typed     = []byte("correct horse battery staple")
)

// testRand is a random source that repeats itself.
func testRand(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// cheapArgon is for tests: 64 KiB.
func cheapArgon() KDF { return KDF{Type: KDFArgon2id, Time: 1, Memory: 64, CPUs: 1} }

func testOptions() Options {
	return Options{UUID: testUUID, Label: "root", Size: testSize}
}

// formatted makes a volume with keyslot 0 for tpmSecret, keyslot 1 for typed
// and a token.
func formatted(t testing.TB, d block.Device, o Options) (*Header, []byte) {
	t.Helper()
	h, key, err := Format(testRand(1), d, o, func(c *Change, volumeKey []byte) error {
		slot, err := c.AddKeyslot(volumeKey, tpmSecret, PBKDF2())
		if err != nil {
			return err
		}
		if _, err := c.AddKeyslot(volumeKey, typed, cheapArgon()); err != nil {
			return err
		}
		_, err = c.AddToken(Token{Type: "halogen-tpm2", Keyslots: []int{slot}, Fields: map[string]json.RawMessage{"blob": []byte(`"<AA==>"`)}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, key
}

// newVolume returns a formatted disk and its volume key.
func newVolume(t testing.TB) (*blocktest.Disk, []byte) {
	t.Helper()
	d := blocktest.New(testSize, blocktest.Hostile)
	_, key := formatted(t, d, testOptions())
	return d, key
}

func mustOpen(t testing.TB, r io.ReaderAt) *Header {
	t.Helper()
	h, health, err := Open(r, testSize)
	if err != nil {
		t.Fatal(err)
	}
	if !health.Good() {
		t.Fatalf("health %+v", health)
	}
	return h
}

// opens fails the test unless the passphrase opens the volume.
func opens(t testing.TB, h *Header, r io.ReaderAt, passphrase, key []byte, slot int) {
	t.Helper()
	got, n, err := h.Unlock(r, passphrase, testMemory)
	if err != nil || n != slot || !bytes.Equal(got, key) {
		t.Errorf("%q: keyslot %d, %v; want keyslot %d and the volume key", passphrase, n, err, slot)
	}
}

func TestFormatOpenUnlock(t *testing.T) {
	d, key := newVolume(t)
	h := mustOpen(t, d)
	if h.UUID != testUUID || h.Label != "root" || h.SequenceID() != 1 {
		t.Errorf("%+v", h)
	}
	opens(t, h, d, tpmSecret, key, 0)
	opens(t, h, d, typed, key, 1)
	if _, _, err := h.Unlock(d, []byte("wrong"), testMemory); !errors.Is(err, ErrPassphrase) || errors.Is(err, ErrMemory) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if _, _, err := h.Unlock(d, typed, testMemory, 0); !errors.Is(err, ErrPassphrase) {
		t.Errorf("a passphrase for another keyslot: %v", err)
	}
	if _, _, err := h.Unlock(d, typed, testMemory, 7); err == nil || errors.Is(err, ErrPassphrase) {
		t.Errorf("a keyslot that is not there: %v", err)
	}
	if err := h.VerifyVolumeKey(key[:32]); !errors.Is(err, ErrVolumeKey) {
		t.Errorf("half a volume key: %v", err)
	}
	token := h.Tokens()[0]
	if token.Type != "halogen-tpm2" || !slices.Equal(token.Keyslots, []int{0}) || string(token.Fields["blob"]) != `"\u003cAA==\u003e"` {
		t.Errorf("token %+v", token)
	}
}

// testdata/header-1.json is what releases before the header's values were fixed
// wrote for this volume: it opens, and the same is written today.
func TestHeaderOfEarlierReleases(t *testing.T) {
	text, err := os.ReadFile("testdata/header-1.json")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.TrimSpace(text)
	d, key := newVolume(t)
	if got := mustOpen(t, d).json; !bytes.Equal(got, text) {
		t.Errorf("written today:\n%s\nwant\n%s", got, text)
	}
	replaceJSON(t, d, text)
	h := mustOpen(t, d)
	opens(t, h, d, tpmSecret, key, 0)
	opens(t, h, d, typed, key, 1)
}

// FAULTS 67
func TestUnlockMemoryLimit(t *testing.T) {
	d, key := newVolume(t)
	h := mustOpen(t, d)
	got, slot, err := h.Unlock(d, tpmSecret, 0)
	if err != nil || slot != 0 || !bytes.Equal(got, key) {
		t.Errorf("PBKDF2 without memory: keyslot %d, %v", slot, err)
	}
	if _, _, err := h.Unlock(d, typed, 64<<10-1); !errors.Is(err, ErrMemory) {
		t.Errorf("argon2id with one byte too little: %v", err)
	}
	if _, _, err := h.Unlock(d, typed, 64<<10); err != nil {
		t.Errorf("argon2id with just enough: %v", err)
	}
	// What the header claims is believed only as far as it costs nothing.
	spoil(t, d, func(m map[string]any) { object(m, "keyslots", "1", "kdf")["memory"] = 4 << 20 })
	h = mustOpen(t, d)
	if _, _, err := h.Unlock(d, typed, 1<<30); !errors.Is(err, ErrMemory) {
		t.Errorf("4 GiB on a machine of 1 GiB: %v", err)
	}
	opens(t, h, d, tpmSecret, key, 0)
}

func TestPriorities(t *testing.T) {
	d, key := newVolume(t)
	spoil(t, d, func(m map[string]any) {
		object(m, "keyslots", "0")["priority"] = 0
		object(m, "keyslots", "1")["priority"] = 2
	})
	h := mustOpen(t, d)
	opens(t, h, d, typed, key, 1)
	if _, _, err := h.Unlock(d, tpmSecret, testMemory); !errors.Is(err, ErrPassphrase) {
		t.Errorf("an ignored keyslot: %v", err)
	}
	if _, slot, err := h.Unlock(d, tpmSecret, testMemory, 0); err != nil || slot != 0 {
		t.Errorf("an ignored keyslot that is asked for: %v", err)
	}
}

func TestChange(t *testing.T) {
	d, key := newVolume(t)
	h := mustOpen(t, d)
	old := h.Keyslots()[0]
	replacement := []byte("another secret")
	err := h.Change(testRand(2), d, func(c *Change) error {
		slot, err := c.AddKeyslot(key, replacement, PBKDF2())
		if err != nil {
			return err
		}
		if err := c.SetToken(0, Token{Type: "halogen-tpm2", Keyslots: []int{slot, old.Number}}); err != nil {
			return err
		}
		return c.RemoveKeyslot(old.Number)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]*Header{"changed": h, "opened again": mustOpen(t, d)} {
		opens(t, h, d, replacement, key, 2)
		opens(t, h, d, typed, key, 1)
		if _, _, err := h.Unlock(d, tpmSecret, testMemory); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: the removed passphrase: %v", name, err)
		}
		if token := h.Tokens()[0]; !slices.Equal(token.Keyslots, []int{2}) {
			t.Errorf("%s: token is for %v", name, token.Keyslots)
		}
		if h.SequenceID() != 3 {
			t.Errorf("%s: sequence %d", name, h.SequenceID())
		}
	}
	// The gap is filled again, and the number.
	err = h.Change(testRand(3), d, func(c *Change) error {
		_, err := c.AddKeyslot(key, tpmSecret, PBKDF2())
		return err
	})
	if err != nil || h.Keyslots()[0] != old {
		t.Errorf("%+v, %v; want %+v", h.Keyslots()[0], err, old)
	}
}

// A copy of a header that somebody has taken goes on opening with what opened it
// then: the volume key stays the same. initagent/THREATS.md says so.
func TestOldHeaderStillOpens(t *testing.T) {
	d, key := newVolume(t)
	old := readBytes(t, d, 0, DataOffset)
	h := mustOpen(t, d)
	if err := h.Change(testRand(2), d, func(c *Change) error { return c.RemoveKeyslot(1) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := mustOpen(t, d).Unlock(d, typed, testMemory); !errors.Is(err, ErrPassphrase) {
		t.Errorf("the removed passphrase: %v", err)
	}
	if _, err := d.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	opens(t, mustOpen(t, d), d, typed, key, 1)
}

func TestChangeRefuses(t *testing.T) {
	d, key := newVolume(t)
	wrong := bytes.Clone(key)
	wrong[0] ^= 1
	add := func(key, passphrase []byte, k KDF) func(*Change) error {
		return func(c *Change) error { _, err := c.AddKeyslot(key, passphrase, k); return err }
	}
	token := func(tok Token) func(*Change) error {
		return func(c *Change) error { _, err := c.AddToken(tok); return err }
	}
	tests := map[string]func(*Change) error{
		"foreign volume key":  add(wrong, typed, PBKDF2()),
		"no volume key":       add(nil, typed, PBKDF2()),
		"empty passphrase":    add(key, nil, PBKDF2()),
		"zeros as passphrase": add(key, make([]byte, 32), PBKDF2()),
		"no KDF":              add(key, typed, KDF{}),
		"few iterations":      add(key, typed, KDF{Type: KDFPBKDF2, Hash: "sha256", Iterations: 999}),
		"weak hash":           add(key, typed, KDF{Type: KDFPBKDF2, Hash: "md5", Iterations: 1000}),
		"no lanes":            add(key, typed, KDF{Type: KDFArgon2id, Time: 4, Memory: 1 << 10}),
		"last keyslots":       func(c *Change) error { return errors.Join(c.RemoveKeyslot(0), c.RemoveKeyslot(1)) },
		"absent keyslot":      func(c *Change) error { return c.RemoveKeyslot(2) },
		"twice the same":      func(c *Change) error { return errors.Join(c.RemoveKeyslot(1), c.RemoveKeyslot(1)) },
		"absent token":        func(c *Change) error { return c.RemoveToken(1) },
		"token 32":            func(c *Change) error { return c.SetToken(32, Token{Type: "x"}) },
		"token without type":  token(Token{}),
		"token for nobody":    token(Token{Type: "x", Keyslots: []int{5}}),
		"token for one twice": token(Token{Type: "x", Keyslots: []int{1, 1}}),
		"field type":          token(Token{Type: "x", Fields: map[string]json.RawMessage{"type": []byte(`"y"`)}}),
		"field Type":          token(Token{Type: "x", Fields: map[string]json.RawMessage{"Type": []byte(`"y"`)}}),
		"broken field":        token(Token{Type: "x", Fields: map[string]json.RawMessage{"y": []byte(`{`)}}),
		"large token":         token(Token{Type: "x", Fields: map[string]json.RawMessage{"y": []byte(`"` + strings.Repeat("y", 12<<10) + `"`)}}),
		"deep token":          token(Token{Type: "x", Fields: map[string]json.RawMessage{"y": []byte(strings.Repeat("[", 30) + strings.Repeat("]", 30))}}),
		"material, then error": func(c *Change) error {
			_, err := c.AddKeyslot(key, []byte("new"), PBKDF2())
			return errors.Join(err, errors.New("changed my mind"))
		},
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			r := blocktest.Record(d)
			h := mustOpen(t, r)
			if err := h.Change(testRand(4), r, edit); err == nil {
				t.Error("no error")
			}
			for _, op := range r.Log() {
				if !op.IsSync() && op.Off < 2*headerSize {
					t.Errorf("%d bytes were written at offset %d", len(op.Data), op.Off)
				}
			}
			opens(t, h, r, tpmSecret, key, 0)
			opens(t, mustOpen(t, r), r, typed, key, 1)
			if err := h.Change(testRand(4), r, func(*Change) error { return nil }); err != nil {
				t.Errorf("the header is of no use any more: %v", err)
			}
		})
	}
}

func TestKeyslotsRunOut(t *testing.T) {
	d, key := newVolume(t)
	h := mustOpen(t, d)
	err := h.Change(testRand(5), d, func(c *Change) error {
		for range MaxKeyslots {
			if _, err := c.AddKeyslot(key, typed, PBKDF2()); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "all 32 are taken") {
		t.Errorf("%v", err)
	}
}

func TestFormatRefuses(t *testing.T) {
	tests := map[string]func(*Options){
		"no UUID":          func(o *Options) { o.UUID = "" },
		"upper-case UUID":  func(o *Options) { o.UUID = strings.ToUpper(o.UUID) },
		"long label":       func(o *Options) { o.Label = strings.Repeat("l", 48) },
		"control in label": func(o *Options) { o.Label = "a\nb" },
		"no room for data": func(o *Options) { o.Size = DataOffset },
		"part of a sector": func(o *Options) { o.Size = DataOffset + 512 },
	}
	for name, change := range tests {
		o := testOptions()
		change(&o)
		r := blocktest.Record(blocktest.New(testSize, blocktest.Hostile))
		_, key, err := Format(testRand(1), r, o, func(*Change, []byte) error { return nil })
		if err == nil || key != nil || len(r.Log()) > 0 {
			t.Errorf("%s: %v, %d operations", name, err, len(r.Log()))
		}
	}
	r := blocktest.New(testSize, blocktest.Hostile)
	if _, _, err := Format(testRand(1), r, testOptions(), func(*Change, []byte) error { return nil }); err == nil {
		t.Error("a volume without a keyslot was made")
	}
	if _, _, err := Open(r, testSize); !errors.Is(err, ErrNotLUKS) {
		t.Errorf("the volume without a keyslot: %v", err)
	}
	if _, _, err := Format(io.LimitReader(testRand(1), 17<<20), r, testOptions(), func(c *Change, key []byte) error {
		_, err := c.AddKeyslot(key, typed, PBKDF2())
		return err
	}); err != nil {
		t.Errorf("with enough random bytes: %v", err)
	}
	if _, _, err := Format(io.LimitReader(testRand(1), 1000), r, testOptions(), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("with too few random bytes: %v", err)
	}
}

func TestDefaultArgon2id(t *testing.T) {
	tests := []struct {
		memory uint64
		cpus   int
		want   KDF
	}{
		{16 << 30, 16, KDF{Type: KDFArgon2id, Time: 4, Memory: 1 << 20, CPUs: 4}},
		{1 << 30, 2, KDF{Type: KDFArgon2id, Time: 4, Memory: 512 << 10, CPUs: 2}},
		{0, 0, KDF{Type: KDFArgon2id, Time: 4, Memory: 32, CPUs: 1}},
	}
	for _, test := range tests {
		k := Argon2id(test.memory, test.cpus)
		if k != test.want || k.validate() != nil {
			t.Errorf("%d bytes, %d CPUs: %+v, %v", test.memory, test.cpus, k, k.validate())
		}
	}
}

func TestSegment(t *testing.T) {
	d, _ := newVolume(t)
	s, err := mustOpen(t, d).Segment()
	if want := (Segment{Offset: DataOffset, Length: testSize - DataOffset, Cipher: "aes-xts-plain64", Sector: 4096}); err != nil || s != want {
		t.Errorf("segment %+v, %v, want %+v", s, err, want)
	}
	if h, _, err := Open(d, testSize-512); err != nil {
		t.Error(err)
	} else if s, err := h.Segment(); err == nil {
		t.Errorf("half a sector is in %+v", s)
	}
}

func TestWipe(t *testing.T) {
	b := []byte("secret")
	Wipe(b)
	if !bytes.Equal(b, make([]byte, 6)) {
		t.Errorf("%q", b)
	}
}
