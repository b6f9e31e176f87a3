package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/pcr"
)

// ErrUnmeasured reports PCRs that must hold measurements and do not. A policy
// over such PCRs would be satisfied by whatever is booted.
var ErrUnmeasured = errors.New("nothing was measured")

// Boot is one boot that may unlock the root partition: what the SHA-256 bank
// holds at the moment of the unlock, computed beforehand.
type Boot struct {
	PCR4  pcr.Digest // EFI programs: boot manager, UKI, the stub's kernel
	PCR7  pcr.Digest // Secure Boot state, keys and the authority that let the UKI start
	PCR11 pcr.Digest // the UKI's sections and the phase "enter-initrd"
	PCR12 pcr.Digest // what the UKI and its boot manager leave in it by themselves; see [pcr.CommandLineTimes]
	PCR13 pcr.Digest // zero: system extensions from outside the UKI unlock nothing
	PCR15 pcr.Digest // zero until a volume key was used
}

// Bound are the PCRs of a [Boot], in the order in which the TPM hashes them.
func Bound() []int { return []int{4, 7, 11, 12, 13, 15} }

// WithoutPrograms are the PCRs that a boot is bound to where PCR 4 cannot be
// predicted, or where a system that may be started cannot read a record over it.
func WithoutPrograms() []int { return []int{7, 11, 12, 13, 15} }

// Provisional are the PCRs that a provisional record is over: all but PCR 7,
// which holds other keys after the restart that enrolls this machine's own.
func Provisional() []int { return []int{11, 12, 13, 15} }

// Value returns what the boot expects in a PCR, which must be one of [Bound].
func (b *Boot) Value(n int) (pcr.Digest, error) {
	p := b.at(n)
	if p == nil {
		return pcr.Digest{}, fmt.Errorf("PCR %d is not among those that a boot is bound to, %v", n, Bound())
	}
	return *p, nil
}

// Set records the value of a PCR, which must be one of [Bound].
func (b *Boot) Set(n int, d pcr.Digest) error {
	p := b.at(n)
	if p == nil {
		return fmt.Errorf("PCR %d is not among those that a boot is bound to, %v", n, Bound())
	}
	*p = d
	return nil
}

func (b *Boot) at(n int) *pcr.Digest {
	switch n {
	case 4:
		return &b.PCR4
	case 7:
		return &b.PCR7
	case 11:
		return &b.PCR11
	case 12:
		return &b.PCR12
	case 13:
		return &b.PCR13
	case 15:
		return &b.PCR15
	}
	return nil
}

// Check refuses what no honest boot can look like: PCR 7 or 11 never extended,
// and PCR 15 extended before the unlock.
func (b *Boot) Check() error {
	for _, n := range []int{7, 11} {
		if d := *b.at(n); Untouched(d) {
			return fmt.Errorf("PCR %d holds %s: %w", n, d, ErrUnmeasured)
		}
	}
	if b.PCR15 != (pcr.Digest{}) {
		return fmt.Errorf("PCR 15 holds %s, want zero: it is extended by the unlock itself", b.PCR15)
	}
	return nil
}

// Untouched reports whether a PCR value is one that a TPM starts with, all
// zeros or all ones.
func Untouched(d pcr.Digest) bool {
	for _, c := range d[1:] {
		if c != d[0] {
			return false
		}
	}
	return d[0] == 0 || d[0] == 0xff
}

// Branch returns the policy digest of this boot alone, for a record without
// Programs: TPM2_PolicyPCR over all of [WithoutPrograms].
func (b *Boot) Branch() Digest { return b.branch(false) }

func (b *Boot) branch(programs bool) Digest {
	d, err := b.BranchOver(registers(programs))
	if err != nil { // they are ascending, and each has a value
		panic(err)
	}
	return d
}

func registers(programs bool) []int {
	if programs {
		return Bound()
	}
	return WithoutPrograms()
}

// BranchOver returns the policy digest of this boot over some of [Bound], in
// ascending order.
func (b *Boot) BranchOver(pcrs []int) (Digest, error) {
	values := make([]Value, 0, len(pcrs))
	for _, n := range pcrs {
		d, err := b.Value(n)
		if err != nil {
			return Digest{}, err
		}
		values = append(values, Value{n, d})
	}
	return PCR(values)
}

// Differ returns the PCRs in which two boots differ, ascending.
func (b *Boot) Differ(other *Boot) []int {
	var out []int
	for _, n := range Bound() {
		if *b.at(n) != *other.at(n) {
			out = append(out, n)
		}
	}
	return out
}

// Explanation says why a policy did not admit a boot.
type Explanation struct {
	PCRs    []int // that differ from Allowed; empty when it could not be found out
	Allowed Boot  // the admitted boot that is nearest; set when PCRs is not empty
}

// String names the PCRs that differ.
func (e Explanation) String() string {
	if len(e.PCRs) == 0 {
		return "PCR 7 or PCR 11 differs from every allowed boot (neither allowed value is known here)"
	}
	words := make([]string, len(e.PCRs))
	for i, n := range e.PCRs {
		words[i] = fmt.Sprintf("PCR %d", n)
	}
	verb := " differs"
	if len(words) > 1 {
		verb = " differ"
	}
	return strings.Join(words, ", ") + verb + " from the nearest allowed boot"
}

// maxKnown bounds the values tried for one PCR, so that Explain hashes a few
// thousand times at most.
const maxKnown = 5

// Explain finds out in which PCRs the current boot differs from the nearest one
// that is allowed. The branches are digests and say nothing by themselves, so
// values that may have been meant are put together until a branch comes out:
// zero for the PCRs that are zero in every ordinary boot, and those of the
// known boots (of the last good boot's event log, say). A finding is therefore
// proven by the digest and never a guess.
func Explain(pcrs []int, branches []Digest, now Boot, known []Boot) Explanation {
	candidates := make([][]pcr.Digest, len(pcrs))
	for i, n := range pcrs {
		p := now.at(n)
		if p == nil {
			return Explanation{}
		}
		c := []pcr.Digest{*p}
		if n >= 12 {
			c = append(c, pcr.Digest{})
		}
		for k := range known {
			if d := *known[k].at(n); !slices.Contains(c, d) && len(c) < maxKnown {
				c = append(c, d)
			}
		}
		candidates[i] = c
	}
	var best Explanation
	pick := now
	var try func(i int)
	try = func(i int) {
		if i == len(pcrs) {
			differ := now.Differ(&pick)
			if len(differ) == 0 || len(best.PCRs) > 0 && len(best.PCRs) <= len(differ) {
				return
			}
			if d, err := pick.BranchOver(pcrs); err == nil && slices.Contains(branches, d) {
				best = Explanation{PCRs: differ, Allowed: pick}
			}
			return
		}
		for _, c := range candidates[i] {
			*pick.at(pcrs[i]) = c
			try(i + 1)
		}
	}
	try(0)
	return best
}
