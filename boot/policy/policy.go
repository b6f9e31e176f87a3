// Package policy holds what builder, machine and TPM must agree on about who
// may unlock the root partition: the policy digests, the record in the TPM's
// NV index, what is derived from the machine secret, and the portable form of
// a sealed object. Everything here is computed; the package talks to no TPM.
//
// It refuses to predict a policy for PCRs that nothing was measured into, to
// encode a record that its own decoder would not take back unchanged (but for
// [Record.Manager] where there is no room), a record that allows a boot below its
// floor, and to print a secret.
package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"halogenos.internal/boot/pcr"
)

// The command codes that enter a policy digest (TPM 2.0 Library, Part 2, 6.5.2).
const (
	ccPolicySigned      = 0x00000160
	ccPolicyCounter     = 0x0000016D // TPM2_PolicyCounterTimer
	ccPolicyAuthValue   = 0x0000016B
	ccPolicyCommandCode = 0x0000016C
	ccUnseal            = 0x0000015E
	ccPolicyOR          = 0x00000171
	ccPolicyPCR         = 0x0000017F
	ccPolicyAuthorizeNV = 0x00000192
)

const (
	algSHA256  = 0x000B
	pcrCount   = 24 // what every PC Client TPM implements
	selectSize = pcrCount / 8
)

// MaxBranches is the number of digests one TPM2_PolicyOR takes (TPML_DIGEST,
// Part 2, 10.9.4: up to 8).
const MaxBranches = 8

// Digest is a SHA-256 policy digest: what a policy session holds after its
// assertions, and what an object's authPolicy is compared with.
type Digest [sha256.Size]byte

// String returns the digest in hexadecimal, as tpm2-tools print it.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("policy digest: %d characters, want %d", len(text), 2*len(d))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("policy digest: %w", err)
	}
	return nil
}

// Name is the TPM Name of an object or NV index: the SHA-256 algorithm
// identifier, big-endian, and the digest of the public area (Part 1, 16).
type Name [2 + sha256.Size]byte

// NameOf returns the Name of a marshalled public area whose nameAlg is SHA-256.
func NameOf(public []byte) Name {
	var n Name
	binary.BigEndian.PutUint16(n[:], algSHA256)
	sum := sha256.Sum256(public)
	copy(n[2:], sum[:])
	return n
}

// String returns the Name in hexadecimal, as tpm2-tools print it.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// IsZero reports whether the Name was never set.
func (n Name) IsZero() bool { return n == Name{} }

// MarshalText implements encoding.TextMarshaler.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes SHA-256 Names only.
func (n *Name) UnmarshalText(text []byte) error {
	if len(text) != 2*len(n) {
		return fmt.Errorf("TPM name: %d characters, want %d", len(text), 2*len(n))
	}
	if _, err := hex.Decode(n[:], text); err != nil {
		return fmt.Errorf("TPM name: %w", err)
	}
	if binary.BigEndian.Uint16(n[:]) != algSHA256 {
		return fmt.Errorf("TPM name: algorithm %#04x, want SHA-256", binary.BigEndian.Uint16(n[:]))
	}
	return nil
}

// Value is what one PCR of the SHA-256 bank must hold.
type Value struct {
	PCR    int
	Digest pcr.Digest
}

// PCR returns the digest of a policy session after TPM2_PolicyPCR, and nothing
// before it, over the given PCRs (Part 3, 23.7). They must come in ascending
// order, as the TPM hashes them.
func PCR(values []Value) (Digest, error) {
	if len(values) == 0 {
		return Digest{}, fmt.Errorf("policy over PCRs: none named")
	}
	var bits [selectSize]byte
	h := sha256.New()
	last := -1
	for _, v := range values {
		if v.PCR <= last || v.PCR >= pcrCount {
			return Digest{}, fmt.Errorf("policy over PCRs: PCR %d after PCR %d, want them ascending and below %d", v.PCR, last, pcrCount)
		}
		last = v.PCR
		bits[v.PCR/8] |= 1 << (v.PCR % 8)
		h.Write(v.Digest[:])
	}
	// TPML_PCR_SELECTION: one bank, its algorithm, the bit map.
	selection := []byte{0, 0, 0, 1, algSHA256 >> 8, algSHA256 & 0xff, selectSize}
	return extend(Digest{}, ccPolicyPCR, append(selection, bits[:]...), h.Sum(nil)), nil
}

// OR returns the digest after TPM2_PolicyOR, which replaces what was in the
// session (Part 3, 23.6). A TPM takes 2 to 8 digests, so a single one stands
// there twice; see [ORList].
func OR(branches []Digest) (Digest, error) {
	list, err := ORList(branches)
	if err != nil {
		return Digest{}, err
	}
	var all []byte
	for _, d := range list {
		all = append(all, d[:]...)
	}
	return extend(Digest{}, ccPolicyOR, all), nil
}

// ORList returns the list to hand to TPM2_PolicyOR for these branches.
func ORList(branches []Digest) ([]Digest, error) {
	switch n := len(branches); {
	case n == 0:
		return nil, fmt.Errorf("policy OR: no branch")
	case n > MaxBranches:
		return nil, fmt.Errorf("policy OR: %d branches, a TPM takes %d", n, MaxBranches)
	case n == 1:
		return []Digest{branches[0], branches[0]}, nil
	}
	return branches, nil
}

// AuthorizeNV returns the digest after TPM2_PolicyAuthorizeNV over the index of
// this Name, which replaces what was in the session (Part 3, 23.22).
func AuthorizeNV(index Name) Digest {
	return extend(Digest{}, ccPolicyAuthorizeNV, index[:])
}

// AuthValue continues a digest by TPM2_PolicyAuthValue (Part 3, 23.17): the object's
// authorisation value is asked for as well.
func AuthValue(old Digest) Digest { return extend(old, ccPolicyAuthValue) }

// UnsealAlone returns the digest of a session that holds old after TPM2_PolicyCommandCode for
// TPM2_Unseal (Part 3, 23.11).
func UnsealAlone(old Digest) Digest {
	return extend(old, ccPolicyCommandCode, binary.BigEndian.AppendUint32(nil, ccUnseal))
}

// ResetLimit is what TPM2_PolicyCounterTimer is given, behind its session: that the
// TPM's count of resets, which grows with every start of the machine and is never set
// back but with the seed of all that was sealed, is no more than limit (Part 2, 10.11.6:
// TPMS_TIME_INFO has it at byte 16; TPM_EO_UNSIGNED_LE, 6.8).
func ResetLimit(limit uint32) (operand, offsetAndOperation []byte) {
	return binary.BigEndian.AppendUint32(nil, limit), []byte{0, 16, 0, 9}
}

// UpToReset returns the digest of a session that holds old after
// TPM2_PolicyCounterTimer with ResetLimit (Part 3, 23.10).
func UpToReset(old Digest, limit uint32) Digest {
	operand, rest := ResetLimit(limit)
	arguments := sha256.Sum256(append(operand, rest...))
	return extend(old, ccPolicyCounter, arguments[:])
}

// Signed returns the digest of a policy session after TPM2_PolicySigned by the
// key of this Name, with an empty policyRef, and nothing before it (Part 3,
// 23.3 and the two-step update of 23.2.3).
func Signed(key Name) Digest {
	return extend(extend(Digest{}, ccPolicySigned, key[:]), -1)
}

// extend is policyDigestNew = H(policyDigestOld || commandCode || parts). A
// negative code is left out, as the second step of some assertions wants it.
func extend(old Digest, code int64, parts ...[]byte) Digest {
	h := sha256.New()
	h.Write(old[:])
	if code >= 0 {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	}
	h.Write(bytes.Join(parts, nil))
	return Digest(h.Sum(nil))
}
