package luks2

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/pbkdf2"
)

// The key derivation functions.
const (
	KDFArgon2id = "argon2id"
	KDFPBKDF2   = "pbkdf2"
)

// KDF is what a passphrase's keyslot costs to try. Use PBKDF2 or Argon2id to
// make one.
type KDF struct {
	Type string `json:"type"` // KDFArgon2id or KDFPBKDF2

	Hash       string `json:"hash,omitempty"`       // PBKDF2: sha256 or sha512
	Iterations int    `json:"iterations,omitempty"` // PBKDF2

	Time   uint32 `json:"time,omitempty"`   // Argon2id: passes
	Memory uint32 `json:"memory,omitempty"` // Argon2id: KiB
	CPUs   uint8  `json:"cpus,omitempty"`   // Argon2id: lanes
}

// The bounds of what is opened and made. PBKDF2's lower bound is the
// specification's, Argon2id's upper bounds are: 4 GiB and four lanes. The
// work, in KiB times passes, is bounded to what takes minutes.
const (
	minIterations  = 1000
	maxIterations  = 100_000_000
	minArgonMemory = 32
	maxArgonMemory = 4 << 20
	maxArgonCPUs   = 4
	maxArgonWork   = 1 << 30
	defaultPasses  = 4
	defaultMemory  = 1 << 20
)

// PBKDF2 is for keys that are random themselves, and need no stretching: the
// 1,000 iterations of SHA-256 that the specification asks for at least.
func PBKDF2() KDF { return KDF{Type: KDFPBKDF2, Hash: "sha256", Iterations: minIterations} }

// Argon2id is for passphrases that people remember: four passes over half of
// the machine's memory (given in bytes) but at most 1 GiB, in up to four lanes.
func Argon2id(machineMemory uint64, cpus int) KDF {
	kib := machineMemory / 2 / 1024
	return KDF{
		Type:   KDFArgon2id,
		Time:   defaultPasses,
		Memory: uint32(min(max(kib, minArgonMemory), defaultMemory)),
		CPUs:   uint8(min(max(cpus, 1), maxArgonCPUs)),
	}
}

func (k KDF) validate() error {
	switch k.Type {
	case KDFPBKDF2:
		if hashes(k.Hash) == nil || k.Iterations < minIterations || k.Iterations > maxIterations {
			return fmt.Errorf("pbkdf2 with %q and %d iterations, want sha256 or sha512 and %d to %d", k.Hash, k.Iterations, minIterations, maxIterations)
		}
		if k.Time != 0 || k.Memory != 0 || k.CPUs != 0 {
			return fmt.Errorf("pbkdf2 with the parameters of argon2")
		}
	case KDFArgon2id:
		if k.Time < 1 || k.Memory < minArgonMemory || k.Memory > maxArgonMemory || k.CPUs < 1 || k.CPUs > maxArgonCPUs ||
			uint64(k.Time)*uint64(k.Memory) > maxArgonWork {
			return fmt.Errorf("argon2id with %d passes over %d KiB in %d lanes", k.Time, k.Memory, k.CPUs)
		}
		if k.Hash != "" || k.Iterations != 0 {
			return fmt.Errorf("argon2id with the parameters of pbkdf2")
		}
	default:
		return fmt.Errorf("key derivation %q, want %s or %s", k.Type, KDFArgon2id, KDFPBKDF2)
	}
	return nil
}

// memory is what a derivation allocates, in bytes.
func (k KDF) memory() uint64 { return uint64(k.Memory) << 10 }

// derive returns a key of size bytes, which the caller wipes.
func (k kdf) derive(passphrase []byte, size int) []byte {
	if k.Type == KDFArgon2id {
		key := argon2.IDKey(passphrase, k.Salt, k.Time, k.Memory, k.CPUs, uint32(size))
		FreeMemory(k.memory())
		return key
	}
	return pbkdf2.Key(passphrase, k.Salt, k.Iterations, size, hashes(k.Hash))
}

// FreeMemory gives back what a key derivation has taken, in bytes, where that is much. The
// collector would let as much again be taken before it runs, and the second key derivation
// of a boot, by which process 1 of a small machine ends: half of its memory is one's share.
func FreeMemory(taken uint64) {
	if taken >= 16<<20 {
		debug.FreeOSMemory()
	}
}

// hashes returns nil for every hash that is not on the list.
func hashes(name string) func() hash.Hash {
	switch name {
	case "sha256":
		return sha256.New
	case "sha512":
		return sha512.New
	}
	return nil
}
