// Package pcr computes platform configuration registers without a TPM: what a
// unified kernel image will leave in PCR 11, what Secure Boot will leave in
// PCR 7, and what an event log says was measured. Only digests that were
// computed here go into a policy, so it refuses what it cannot compute: a stub
// of unknown habits, a section whose use depends on the machine, a log that
// does not parse to its last byte.
package pcr

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Registers that a boot is bound to (UAPI Group, Linux TPM PCR Registry).
const (
	BootPrograms = 4  // boot manager, UKI and other EFI programs
	SecureBoot   = 7  // Secure Boot state, keys, and the certificates that let images start
	KernelImage  = 11 // the unified kernel image and the phases of the boot
	KernelConfig = 12 // command lines, credentials and addons from outside the image
	SystemExts   = 13 // system extensions from outside the image
	SystemID     = 15 // what identifies the machine, such as the volume key
)

// Drivers is the register of EFI drivers and option ROMs.
const Drivers = 2

// Phases of the boot that are measured into PCR 11 as words
// (systemd-pcrphase.service).
const (
	EnterInitrd = "enter-initrd"
	LeaveInitrd = "leave-initrd"
	// Recovery is ours: the recovery console opens, and nothing unseals any more.
	Recovery = "recovery"
)

// Digest is a register's value in the SHA-256 bank, or what it is extended by.
type Digest [sha256.Size]byte

// Extend returns the register's value after the TPM extended it by event.
func (d Digest) Extend(event Digest) Digest {
	var both [2 * sha256.Size]byte
	copy(both[:], d[:])
	copy(both[sha256.Size:], event[:])
	return sha256.Sum256(both[:])
}

// String returns the value in lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads 64 hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return d, fmt.Errorf("digest of %d digits, want %d", len(s), hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", s, err)
	}
	return d, nil
}

// MarshalText is String, for JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDigest, for JSON.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err == nil {
		*d = parsed
	}
	return err
}
