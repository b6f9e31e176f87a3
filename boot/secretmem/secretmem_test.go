package secretmem_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/secretmem"
	"halogenos.internal/boot/testkit"
)

// needEnabled is for tests of what only the experiment does.
func needEnabled(t *testing.T) {
	t.Helper()
	if !secretmem.Enabled() {
		testkit.Skip(t, "built without GOEXPERIMENT=runtimesecret: `make unit` sets it")
	}
}

// What the Makefile sets reaches the tests. FAULTS 85, 102
func TestEnabled(t *testing.T) {
	if os.Getenv("GOEXPERIMENT") == "runtimesecret" && !secretmem.Enabled() {
		t.Errorf("GOEXPERIMENT=runtimesecret is set, and this program (%s, %s) does not have it", runtime.Version(), runtime.GOARCH)
	}
}

func secretOf(how string) [32]byte { return sha256.Sum256([]byte("the secret of " + how)) }

// keep holds what a child allocates, so that the compiler cannot leave it out.
var keep int

// use does with a secret what programs do: copies of it come to lie in slices
// that grow, in strings, in the state of a cipher, and deep in the stack.
func use(how string, depth int) {
	if depth > 0 {
		var frame [512]byte
		use(how, depth-1)
		keep += int(frame[keep%512])
		return
	}
	s := secretOf(how)
	var grown []byte
	for range 100 {
		grown = append(grown, s[:]...)
	}
	text := fmt.Sprint(len(string(grown)))
	block, err := aes.NewCipher(s[:])
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	keep += len(text) + gcm.Overhead() + int(grown[17]) + len(strings.Clone(string(s[:])))
}

// After Do nothing of the secret is in memory. The controls, in which it is
// used outside of Do or the results stay reachable, show that the search finds
// it. FAULTS 85, 102
func TestErases(t *testing.T) {
	testkit.Child(t, func(how string) {
		switch how {
		case "do":
			secretmem.Do(func() { use(how, 50) })
		case "panic":
			func() {
				defer func() { _ = recover() }()
				secretmem.Do(func() { use(how, 50); panic("stop") })
			}()
		case "nested":
			secretmem.Do(func() { secretmem.Do(func() { use(how, 50) }); use(how, 5) })
		case "dropped", "held":
			s, err := secretmem.Get(func() ([]byte, error) { s := secretOf(how); return bytes.Clone(s[:]), nil })
			if err != nil || len(s) != 32 {
				t.Error(err)
			}
			if how == "held" {
				held = s
			}
		case "cached":
			if _, err := secretmem.Get(func() (*int, error) { return cached(how), nil }); err != nil {
				t.Error(err)
			}
		case "control":
			use(how, 50)
		}
		secretmem.Collect()
	})
	needEnabled(t)
	for how, found := range map[string]bool{"do": false, "panic": false, "nested": false, "dropped": false, "cached": false, "held": true, "control": true} {
		t.Run(how, func(t *testing.T) {
			s := secretOf(how)
			if n := testkit.CountInMemory(t, testkit.Paused(t, how), s[:]); n > 0 != found {
				t.Errorf("%d copies of the secret in memory, want some: %v", n, found)
			}
		})
	}
}

var held []byte

// cache holds secrets as crypto/ecdsa holds its keys: each until a cleanup of its
// owner has run.
var cache sync.Map

func cached(how string) *int {
	owner := new(int)
	s := secretOf(how)
	cache.Store(how, bytes.Clone(s[:]))
	// A slow cleanup before it, so that the second collection would come too early.
	runtime.AddCleanup(owner, func(int) { time.Sleep(50 * time.Millisecond) }, 0)
	runtime.AddCleanup(owner, func(how string) { cache.Delete(how) }, how)
	return owner
}

func TestResults(t *testing.T) {
	failed := errors.New("failed")
	if err := secretmem.Try(func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Try returned %v", err)
	}
	text, err := secretmem.Get(func() (string, error) {
		if secretmem.Inside() != secretmem.Enabled() {
			t.Errorf("inside Do: Inside is %v", secretmem.Inside())
		}
		return "result", failed
	})
	if text != "result" || !errors.Is(err, failed) {
		t.Errorf("Get returned %q, %v", text, err)
	}
	if secretmem.Inside() {
		t.Error("outside of Do: Inside is true")
	}
}

// A panic goes on, whatever its value is: nothing that comes after a Do may run
// because f stopped halfway.
func TestPanicGoesOn(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1") // what a program built in GOPATH mode has
	for _, value := range []any{"text", errors.New("error"), nil} {
		if value == nil && !secretmem.Enabled() {
			continue // nobody can see it there
		}
		var got any
		returned := false
		func() {
			defer func() { got = recover() }()
			secretmem.Do(func() { panic(value) })
			returned = true
		}()
		if returned || got == nil || value != nil && got != value {
			t.Errorf("panic(%v): Do returned: %v, recovered %v", value, returned, got)
		}
	}
}
