package keys

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/secretmem"
	"halogenos.internal/boot/testkit"
)

// What the controls hold.
var (
	heldKey      crypto.Signer
	heldPassword *Password
)

// signOnce loads the key of a directory and signs with it.
func signOnce(t testing.TB, dir string) (crypto.Signer, func(), *Password) {
	password, err := ReadPassword(filepath.Join(dir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	key, wiped, err := LoadModuleKey(filepath.Join(dir, ModuleSecret), password)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Check(filepath.Join(dir, ModuleSecret), password, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	return key, wiped, password
}

// After a key was made, read, checked and used, neither it nor its password is
// in memory; where it is not wiped, it is found. No core dump is made of the
// process. FAULTS 102
func TestNothingIsLeft(t *testing.T) {
	testkit.Child(t, func(how string) {
		if err := Protect(); err != nil {
			t.Error(err)
		}
		if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
			t.Errorf("dumpable is %d, %v", dumpable, err)
		}
		what, dir, _ := strings.Cut(how, " ")
		if what == "generate" {
			w := Wanted{Dir: dir, Name: "T", Now: time.Now(), UnencryptedStorage: true}
			var err error
			if w.Password, err = ReadPassword(filepath.Join(dir, "password")); err != nil {
				t.Error(err)
			}
			if _, err := Generate(w); err != nil {
				t.Error(err)
			}
			if err := w.Password.Wipe(); err != nil {
				t.Error(err)
			}
			return
		}
		key, wiped, password := signOnce(t, dir)
		if what == "hold" {
			heldKey, heldPassword = key, password
			return
		}
		wiped()
		if err := password.Wipe(); err != nil {
			t.Error(err)
		}
	})
	if !secretmem.Enabled() {
		testkit.Skip(t, "built without GOEXPERIMENT=runtimesecret: `make unit` sets it")
	}
	words := rand.Text() // no constant: that would be part of the program
	directory := func() string {
		dir := private(t)
		if err := os.WriteFile(filepath.Join(dir, "password"), []byte(words+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	made := directory()
	if _, err := Generate(Wanted{Dir: made, Name: "T", Password: passwordOf(t, words), Now: time.Now(), UnencryptedStorage: true}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, dir string
		found     bool
	}{{"sign", made, false}, {"generate", directory(), false}, {"hold", made, true}} {
		t.Run(c.what, func(t *testing.T) {
			pid := testkit.Paused(t, c.what+" "+c.dir)
			for name, secret := range secretsOf(t, c.dir, words) {
				if n := testkit.CountInMemory(t, pid, secret); n > 0 != c.found && !(c.found && strings.Contains(name, "big-endian")) {
					t.Errorf("%d copies of the %s in memory, want some: %v", n, name, c.found)
				}
			}
		})
	}
}

// secretsOf are parts of the module key of a directory as memory would have them,
// and the password.
func secretsOf(t testing.TB, dir, words string) map[string][]byte {
	t.Helper()
	key, err := loadModuleKey(filepath.Join(dir, ModuleSecret), passwordOf(t, words))
	if err != nil {
		t.Fatal(err)
	}
	private, ok := key.key.(*rsa.PrivateKey)
	if !ok {
		t.Fatalf("the key is a %T", key.key)
	}
	all := map[string][]byte{"password": []byte(words)}
	for name, number := range map[string][]byte{"exponent": private.D.Bytes(), "first prime": private.Primes[0].Bytes(), "second prime": private.Primes[1].Bytes()} {
		part := number[len(number)-64 : len(number)-32]
		all[name+", big-endian"] = slices.Clone(part)
		slices.Reverse(part)
		all[name] = part // as math/big and crypto/internal/fips140/bigmod have it
	}
	return all
}
