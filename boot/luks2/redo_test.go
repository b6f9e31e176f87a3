package luks2

import (
	"bytes"
	"errors"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/testkit"
)

func testRedo() *Redo {
	return &Redo{Partition: "system-b", Chunks: 77, MAC: bytes.Repeat([]byte{7}, macSize)}
}

// A header that says that sectors wait elsewhere is opened by nobody who does not know that,
// and is as before when it no longer says so.
func TestRedo(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	f := newImage(t)
	h, key := formatted(t, f, testOptions())
	before := len(h.Tokens())
	set := func(r *Redo) {
		t.Helper()
		if err := h.Change(testRand(3), f, func(c *Change) error { return c.SetRedo(r) }); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(h *Header) *Redo {
		t.Helper()
		r, err := h.Redo()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if got := waits(h); got != nil {
		t.Errorf("at first: %+v", got)
	}
	set(testRedo())
	if got := waits(mustOpen(t, f)); !reflect.DeepEqual(got, testRedo()) {
		t.Errorf("read again: %+v", got)
	}
	opens(t, mustOpen(t, f), f, tpmSecret, key, 0)
	if dump := cryptsetup(t, "luksDump", f.Name()); !regexp.MustCompile(`Requirements:\s+halogen-redo`).MatchString(dump) {
		t.Errorf("luksDump says:\n%s", dump)
	}
	// It looks at requirements where it activates or changes a volume. The first takes a device mapper.
	add := exec.Command("cryptsetup", "--batch-mode", "--disable-locks", "luksAddKey", "--key-file", keyFile(t, tpmSecret), f.Name(), keyFile(t, []byte("another")))
	if out, err := add.CombinedOutput(); err == nil || !strings.Contains(string(out), "Unmet LUKS2 requirements") {
		t.Errorf("luksAddKey: %v\n%s", err, out)
	}
	if err := h.Change(testRand(3), f, func(c *Change) error { return c.SetRedo(testRedo()) }); err == nil {
		t.Error("a second one is taken")
	}
	set(nil)
	set(nil)
	if h := mustOpen(t, f); waits(h) != nil || len(h.Tokens()) != before {
		t.Errorf("it stays: %+v, %d tokens", waits(h), len(h.Tokens()))
	}
	cryptsetup(t, "luksAddKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", keyFile(t, tpmSecret), f.Name(), keyFile(t, []byte("another")))
	cryptsetupOpens(t, f.Name(), tpmSecret, 0)
	cryptsetupOpens(t, f.Name(), typed, 1)
	independentOpens(t, f.Name(), tpmSecret, 0)
}

// Keyslots and tokens change as before while one waits.
func TestRedoStays(t *testing.T) {
	d, key := newVolume(t)
	h := mustOpen(t, d)
	err := h.Change(testRand(3), d, func(c *Change) error { return c.SetRedo(testRedo()) })
	if err == nil {
		err = h.Change(testRand(4), d, func(c *Change) error { return c.RemoveKeyslot(1) })
	}
	if err != nil {
		t.Fatal(err)
	}
	opens(t, mustOpen(t, d), d, tpmSecret, key, 0)
	if got, err := mustOpen(t, d).Redo(); err != nil || !reflect.DeepEqual(got, testRedo()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRedoRefused(t *testing.T) {
	mandatory := func(m map[string]any, names ...any) {
		object(m, "config")["requirements"] = map[string]any{"mandatory": names}
	}
	token := func(m map[string]any, id string, change func(map[string]any)) {
		value := map[string]any{"type": redoName, "keyslots": []any{}, "partition": "system-b", "chunks": 1, "mac": bytes.Repeat([]byte{1}, macSize)}
		change(value)
		object(m, "tokens")[id] = value
	}
	plain := func(map[string]any) {}
	for name, edit := range map[string]func(map[string]any){
		"the requirement alone":    func(m map[string]any) { mandatory(m, redoName) },
		"the token alone":          func(m map[string]any) { token(m, "5", plain) },
		"another requirement, too": func(m map[string]any) { token(m, "5", plain); mandatory(m, redoName, "opal") },
		"twice":                    func(m map[string]any) { token(m, "5", plain); mandatory(m, redoName, redoName) },
		"two tokens":               func(m map[string]any) { token(m, "5", plain); token(m, "6", plain); mandatory(m, redoName) },
		"an unknown field": func(m map[string]any) {
			token(m, "5", func(v map[string]any) { v["x"] = 1 })
			mandatory(m, redoName)
		},
		"a short MAC": func(m map[string]any) {
			token(m, "5", func(v map[string]any) { v["mac"] = []byte{1} })
			mandatory(m, redoName)
		},
		"no partition": func(m map[string]any) {
			token(m, "5", func(v map[string]any) { delete(v, "partition") })
			mandatory(m, redoName)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := blocktest.New(testSize, blocktest.Hostile)
			formatted(t, d, testOptions())
			spoil(t, d, edit)
			if _, _, err := Open(d, testSize); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%v", err)
			}
		})
	}
}
