package phrase

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/policy"
)

// The list is that of the specification, byte by byte.
func TestList(t *testing.T) {
	sum := sha256.Sum256([]byte(english))
	if got := hex.EncodeToString(sum[:]); got != "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda" {
		t.Errorf("SHA-256 %s", got)
	}
	first := map[string]bool{}
	for _, word := range strings.Fields(english) {
		first[word[:min(4, len(word))]] = true
	}
	if len(first) != 1<<bits {
		t.Errorf("%d words are told apart by four letters, want %d", len(first), 1<<bits)
	}
}

// A key has one phrase for ever, and each word of the list comes up.
func TestOf(t *testing.T) {
	fixed, err := policy.SecretFrom(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Of(fixed), "collect shed charge ship"; got != want {
		t.Errorf("%q, want %q: machines would show other words than before", got, want)
	}
	random := rand.NewChaCha8([32]byte{1})
	seen := map[string]bool{}
	for range 10000 {
		key, err := policy.NewSecret(random)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Split(Of(key), " ")
		if len(words) != Words {
			t.Fatalf("%q", words)
		}
		for _, word := range words {
			seen[word] = true
		}
	}
	if len(seen) != 1<<bits {
		t.Errorf("%d words come up, want %d", len(seen), 1<<bits)
	}
}
