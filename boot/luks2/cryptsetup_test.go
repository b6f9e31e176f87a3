package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	luks "github.com/anatol/luks.go"

	"halogenos.internal/boot/testkit"
)

// newImage returns an empty image file.
func newImage(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	return f
}

// keyFile writes a passphrase to a file.
func keyFile(t *testing.T, passphrase []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, passphrase, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func cryptsetup(t *testing.T, args ...string) string {
	t.Helper()
	return testkit.Run(t, "cryptsetup", append([]string{"--batch-mode", "--disable-locks"}, args...)...)
}

// cryptsetupRefuses returns the exit code of a failed command.
func cryptsetupRefuses(t *testing.T, args ...string) int {
	t.Helper()
	out, err := exec.Command(testkit.Need(t, "cryptsetup"), append([]string{"--batch-mode", "--disable-locks"}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Errorf("cryptsetup %q: %v\n%s", args, err, out)
		return 0
	}
	return exit.ExitCode()
}

// volumeKeyOf asks cryptsetup for the volume key.
func volumeKeyOf(t *testing.T, image string, passphrase []byte) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "volume-key")
	cryptsetup(t, "luksDump", "--dump-volume-key", "--volume-key-file", out, "--key-file", keyFile(t, passphrase), image)
	key, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// cryptsetupOpens asks cryptsetup whether a passphrase opens a keyslot.
func cryptsetupOpens(t *testing.T, image string, passphrase []byte, slot int) {
	t.Helper()
	cryptsetup(t, "luksOpen", "--test-passphrase", "--key-slot", fmt.Sprint(slot), "--key-file", keyFile(t, passphrase), image)
}

// independentOpens asks luks.go the same.
func independentOpens(t *testing.T, image string, passphrase []byte, slot int) {
	t.Helper()
	d, err := luks.Open(image)
	if err != nil {
		t.Fatalf("luks.go: %v", err)
	}
	defer d.Close()
	if _, err := d.UnsealVolume(slot, passphrase); err != nil {
		t.Errorf("luks.go: keyslot %d with %q: %v", slot, passphrase, err)
	}
}

func TestCryptsetupReadsOurs(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	f := newImage(t)
	image := f.Name()
	o := testOptions()
	o.Subsystem = "halogen"
	h, key := formatted(t, f, o)
	cryptsetup(t, "isLuks", "--type", "luks2", image)
	dump := cryptsetup(t, "luksDump", image)
	for _, want := range []string{
		testUUID, "Label:         \troot\n", "Subsystem:     \thalogen\n", "sector: 4096 [bytes]",
		"cipher: aes-xts-plain64", "offset: 16777216 [bytes]", "Keyslots area: \t16744448 [bytes]",
		"PBKDF:      pbkdf2\n", "PBKDF:      argon2id\n", "0: halogen-tpm2\n",
	} {
		if !strings.Contains(dump, want) {
			t.Errorf("luksDump does not say %q:\n%s", want, dump)
		}
	}
	if got := volumeKeyOf(t, image, tpmSecret); !bytes.Equal(got, key) {
		t.Error("cryptsetup finds another volume key")
	}
	cryptsetupOpens(t, image, tpmSecret, 0)
	cryptsetupOpens(t, image, typed, 1)
	independentOpens(t, image, tpmSecret, 0)
	independentOpens(t, image, typed, 1)
	if code := cryptsetupRefuses(t, "luksOpen", "--test-passphrase", "--key-file", keyFile(t, []byte("wrong")), image); code != 2 {
		t.Errorf("a wrong passphrase: exit code %d", code)
	}
	testCryptsetupReadsChanges(t, f, h, key)
}

func testCryptsetupReadsChanges(t *testing.T, f *os.File, h *Header, key []byte) {
	image := f.Name()
	recovery, err := NewRecoveryKey(testRand(11))
	if err != nil {
		t.Fatal(err)
	}
	err = h.Change(testRand(12), f, func(c *Change) error {
		slot, err := c.AddKeyslot(key, recovery.Passphrase(), KDF{Type: KDFPBKDF2, Hash: "sha512", Iterations: 2000})
		if err != nil {
			return err
		}
		_, err = c.AddToken(RecoveryToken(slot))
		return errors.Join(err, c.RemoveKeyslot(1))
	})
	if err != nil {
		t.Fatal(err)
	}
	cryptsetupOpens(t, image, recovery.Passphrase(), 2)
	independentOpens(t, image, recovery.Passphrase(), 2)
	cryptsetupOpens(t, image, tpmSecret, 0)
	if code := cryptsetupRefuses(t, "luksOpen", "--test-passphrase", "--key-file", keyFile(t, typed), image); code != 2 {
		t.Errorf("the removed passphrase: exit code %d", code)
	}
	for id, want := range map[int]string{
		0: `{"type":"halogen-tpm2","keyslots":["0"],"blob":"<AA==>"}`,
		1: `{"type":"systemd-recovery","keyslots":["2"]}`,
	} {
		var got, expected any
		out := cryptsetup(t, "token", "export", "--token-id", fmt.Sprint(id), image)
		if err := errors.Join(json.Unmarshal([]byte(out), &got), json.Unmarshal([]byte(want), &expected)); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(expected) {
			t.Errorf("token %d: %s, want %s", id, out, want)
		}
	}
}

func TestOpensCryptsetups(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	argon := []string{"--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2"}
	pbkdf2 := []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	tests := map[string][]string{
		"pbkdf2":   pbkdf2,
		"argon2id": argon,
		"sha512":   append(pbkdf2, "--hash", "sha512"),
		"labels":   append(pbkdf2, "--label", "a label", "--subsystem", "sub"),
	}
	for name, more := range tests {
		t.Run(name, func(t *testing.T) {
			f := newImage(t)
			image := f.Name()
			args := []string{"luksFormat", "--type", "luks2", "--uuid", testUUID, "--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096"}
			args = append(append(args, more...), "--key-file", keyFile(t, typed), image)
			cryptsetup(t, args...)
			key := volumeKeyOf(t, image, typed)
			h := mustOpen(t, f)
			opens(t, h, f, typed, key, 0)
			if h.UUID != testUUID {
				t.Errorf("UUID %q", h.UUID)
			}
			// What we add to it, cryptsetup opens, and the other way round.
			if err := h.Change(testRand(13), f, func(c *Change) error {
				_, err := c.AddKeyslot(key, tpmSecret, PBKDF2())
				return err
			}); err != nil {
				t.Fatal(err)
			}
			cryptsetupOpens(t, image, tpmSecret, 1)
			cryptsetup(t, "luksAddKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
				"--key-file", keyFile(t, tpmSecret), image, keyFile(t, []byte("third")))
			cryptsetup(t, "config", "--priority", "prefer", "--key-slot", "2", image)
			cryptsetup(t, "luksKillSlot", "--key-file", keyFile(t, tpmSecret), image, "0")
			cryptsetup(t, "token", "import", "--json-file", keyFile(t, []byte(`{"type":"x","keyslots":["1"],"n":1.50}`)), image)
			h = mustOpen(t, f)
			opens(t, h, f, []byte("third"), key, 2)
			opens(t, h, f, tpmSecret, key, 1)
			if _, _, err := h.Unlock(f, typed, testMemory); !errors.Is(err, ErrPassphrase) {
				t.Errorf("the killed keyslot: %v", err)
			}
			if token := h.Tokens()[0]; token.Type != "x" || string(token.Fields["n"]) != "1.50" {
				t.Errorf("token %+v", token)
			}
		})
	}
}

// FAULTS 65: the real thing, not just our idea of it.
func TestRefusesCryptsetups(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	format := func(t *testing.T, args ...string) *os.File {
		f := newImage(t)
		args = append([]string{"luksFormat", "--type", "luks2", "--sector-size", "4096", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", keyFile(t, typed)}, args...)
		cryptsetup(t, append(args, f.Name())...)
		return f
	}
	refused := func(t *testing.T, f *os.File, want string) {
		t.Helper()
		if _, _, err := Open(f, testSize); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want ErrUnsupported that says %q", err, want)
		}
	}
	t.Run("another cipher", func(t *testing.T) { refused(t, format(t, "--cipher", "aes-cbc-essiv:sha256"), "aes-cbc-essiv") })
	// What cryptsetup can do otherwise, and we never do.
	t.Run("sectors of 512", func(t *testing.T) { refused(t, format(t, "--sector-size", "512"), `"sector_size":512`) })
	t.Run("data elsewhere", func(t *testing.T) {
		refused(t, format(t, "--offset", "32776", "--luks2-keyslots-size", "16744448"), `"offset":"16781312"`)
	})
	t.Run("AES-128", func(t *testing.T) { refused(t, format(t, "--key-size", "256"), "key of 32 bytes") })
	t.Run("small keyslots area", func(t *testing.T) { refused(t, format(t, "--luks2-keyslots-size", "1m"), "keyslots area") })
	t.Run("large metadata", func(t *testing.T) {
		if _, _, err := Open(format(t, "--luks2-metadata-size", "64k"), testSize); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "65536 bytes") {
			t.Error(err)
		}
	})
	t.Run("reencryption", func(t *testing.T) {
		f := format(t)
		cryptsetup(t, "reencrypt", "--init-only", "--resilience", "none", "--key-file", keyFile(t, typed),
			"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", f.Name())
		refused(t, f, "reencrypted")
	})
	t.Run("LUKS1", func(t *testing.T) {
		f := newImage(t)
		cryptsetup(t, "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", keyFile(t, typed), f.Name())
		refused(t, f, "version 1")
	})
	t.Run("unbound keyslot", func(t *testing.T) {
		f := format(t)
		cryptsetup(t, "luksAddKey", "--unbound", "--key-size", "512", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
			"--new-key-slot", "5", f.Name(), keyFile(t, []byte("unbound")))
		refused(t, f, "digests")
	})
}

// Both halves of a change that a power cut split are for cryptsetup what they
// are for us.
func TestCryptsetupAgreesOnTheNewerCopy(t *testing.T) {
	testkit.Need(t, "cryptsetup")
	for _, s := range []side{primary, secondary} {
		f := newImage(t)
		h, _ := formatted(t, f, testOptions())
		if err := (&headerCopy{uuid: h.UUID, label: "newer", seq: h.seq + 1, json: h.json}).writeTo(testRand(14), f, s); err != nil {
			t.Fatal(err)
		}
		got, _, err := Open(f, testSize)
		if err != nil || got.Label != "newer" {
			t.Errorf("%s newer: %v", s, err)
		}
		if dump := cryptsetup(t, "luksDump", f.Name()); !strings.Contains(dump, "newer") {
			t.Errorf("%s newer: cryptsetup takes the other one:\n%s", s, dump)
		}
	}
}
