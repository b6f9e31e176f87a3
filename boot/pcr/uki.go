package pcr

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/uki"
)

// oldestStub is the first systemd-stub that measures its sections into PCR 11.
const oldestStub = 252

// exactNames is the first systemd-stub that compares whole section names. The
// ones before take .dtbauto for .dtb.
const exactNames = 257

// stubSection is a section that systemd-stub measures, and since which version.
type stubSection struct {
	name  string
	since int
}

// measured lists the sections in the order in which the stub measures them
// (systemd, enum UnifiedSection). .pcrsig is left out there too: it signs the
// outcome.
func measured() []stubSection {
	return []stubSection{
		{".linux", 252},
		{".osrel", 252},
		{".cmdline", 252},
		{".initrd", 252},
		{".ucode", uki.MicrocodeStub},
		{".splash", 252},
		{".dtb", 252},
		{".uname", 254},
		{".sbat", 254},
		{".pcrpkey", 252},
		{".profile", 257},
		{".dtbauto", 257}, // only where the machine's hardware matches it
		{".hwids", 257},
		{".efifw", 258}, // likewise
	}
}

// unmeasured lists the sections of the stub itself, and .pcrsig.
func unmeasured() []string {
	return []string{
		".text", ".rodata", ".data", ".reloc", ".sdmagic", ".pcrsig",
		".dynamic", ".rela", ".dynsym", ".bss", ".dynstr", ".rel", ".got", ".sbom",
	}
}

// PredictUKI returns PCR 11 as systemd-stub leaves it: for each section that
// this version of the stub measures, the name with its NUL, then the data.
// It refuses an image without the mark of a stub of version 252 or newer, and
// one with a section that the stub may or may not measure.
func PredictUKI(img *uki.Image) (Digest, error) {
	stub, err := img.Stub()
	if err != nil {
		return Digest{}, fmt.Errorf("predict PCR 11: %w", err)
	}
	if stub.Program != "systemd-stub" || stub.Major < oldestStub {
		return Digest{}, fmt.Errorf("predict PCR 11: image starts with %s %s, want systemd-stub %d or newer", stub.Program, stub.Version, oldestStub)
	}
	if _, ok := img.Section(".linux"); !ok {
		return Digest{}, fmt.Errorf("predict PCR 11: image has no section .linux")
	}
	if err := checkPredictable(img, stub.Major); err != nil {
		return Digest{}, fmt.Errorf("predict PCR 11: systemd-stub %s: %w", stub.Version, err)
	}
	var d Digest
	for _, s := range measured() {
		data, ok := img.Section(s.name)
		if !ok || len(data) == 0 || stub.Major < s.since {
			continue
		}
		d = d.Extend(sha256.Sum256([]byte(s.name + "\x00")))
		d = d.Extend(sha256.Sum256(data))
	}
	return d, nil
}

func checkPredictable(img *uki.Image, major int) error {
	known := measured()
	newest := known[len(known)-1].since
	for _, s := range img.Sections() {
		index := slices.IndexFunc(known, func(k stubSection) bool { return k.name == s.Name })
		switch {
		case index >= 0 && major >= known[index].since && (s.Name == ".dtbauto" || s.Name == ".efifw"):
			return fmt.Errorf("section %s is measured only on machines whose hardware it matches", s.Name)
		case index < 0 && major > newest && !slices.Contains(unmeasured(), s.Name):
			return fmt.Errorf("section %s may be measured: only what stubs up to %d do is known", s.Name, newest)
		}
		if major >= exactNames {
			continue
		}
		for _, k := range known {
			if s.Name != k.name && major >= k.since && strings.HasPrefix(s.Name, k.name) {
				return fmt.Errorf("section %s is taken for %s", s.Name, k.name)
			}
		}
	}
	return nil
}

// Phases returns PCR 11 after the words were measured one after the other, as
// systemd-pcrphase does: each extends by its SHA-256.
func Phases(d Digest, words ...string) Digest {
	for _, word := range words {
		d = d.Extend(sha256.Sum256([]byte(word)))
	}
	return d
}
