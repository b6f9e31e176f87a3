package release

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/ecdsa"
	"github.com/ProtonMail/go-crypto/openpgp/eddsa"

	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/secretmem"
	"halogenos.internal/boot/testkit"
)

// heldSigner is what the control does not close.
var heldSigner *Signer

func signAndClose(t testing.TB, dir, algorithm string, hold bool) {
	pinned, err := pgp.ParseKey(mustRead(t, filepath.Join(dir, algorithm+".pub")))
	if err != nil {
		t.Fatal(err)
	}
	file := KeyFile{Path: filepath.Join(dir, algorithm+".sec"), Password: filepath.Join(dir, "password"), UnencryptedStorage: true}
	s, err := LoadSigner(file, pinned, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(bytes.NewReader(make([]byte, 1<<20)), now); err != nil {
		t.Fatal(err)
	}
	if heldSigner = s; !hold {
		s.Close()
		heldSigner = nil
	}
}

// After a release was signed, neither the key nor its password is in memory;
// while the signer is open, the key is. FAULTS 102
func TestNothingIsLeft(t *testing.T) {
	testkit.Child(t, func(how string) {
		f := strings.Fields(how)
		signAndClose(t, f[1], f[2], f[0] == "hold")
	})
	if !secretmem.Enabled() {
		testkit.Skip(t, "built without GOEXPERIMENT=runtimesecret: `make unit` sets it")
	}
	w := newWorld(t)
	words := rand.Text() // no constant: that would be part of the program
	w.write("password", words+"\n")
	for _, algorithm := range []string{"ed25519", "nistp256", "rsa3072"} {
		w.key(algorithm, algorithm, words)
		secret := secretOf(t, filepath.Join(w.dir, algorithm+".sec"), words)
		reversed := slices.Clone(secret)
		slices.Reverse(reversed)
		for how, found := range map[string]bool{"sign": false, "hold": true} {
			t.Run(algorithm+" "+how, func(t *testing.T) {
				pid := testkit.Paused(t, how+" "+w.dir+" "+algorithm)
				n := testkit.CountInMemory(t, pid, secret) + testkit.CountInMemory(t, pid, reversed)
				if n > 0 != found {
					t.Errorf("%d copies of the key in memory, want some: %v", n, found)
				}
				if n := testkit.CountInMemory(t, pid, []byte(words)); n > 0 {
					t.Errorf("%d copies of the password in memory", n)
				}
			})
		}
	}
}

// secretOf is a part of the secret number of a key, big-endian.
func secretOf(t testing.TB, path, words string) []byte {
	t.Helper()
	ring, err := readSecretKey(path)
	if err != nil {
		t.Fatal(err)
	}
	k := ring[0]
	if err := k.Decrypt([]byte(words)); err != nil {
		t.Fatal(err)
	}
	var number []byte
	switch p := k.PrivateKey.(type) {
	case *rsa.PrivateKey:
		number = p.D.Bytes()
	case *ecdsa.PrivateKey:
		number = p.D.Bytes()
	case *eddsa.PrivateKey:
		number = p.D
	default:
		t.Fatalf("the key is a %T", p)
	}
	return slices.Clone(number[4:28])
}
