// Package microcode reads the containers in which Intel and AMD give out the microcode
// of their processors, and makes of them what Linux loads before anything else: an
// uncompressed cpio archive with one file for each maker (Linux,
// Documentation/arch/x86/microcode.rst).
//
// It refuses a container that Linux would stop reading in the middle: what comes after a
// damaged update would silently not be there. Whether an update is genuine it does not
// say; the processor does, which takes nothing that its maker has not signed.
package microcode

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// MaxSize bounds a container and an archive of them in bytes. Intel's for all processors
// of twenty years has 15 MB, AMD's a hundredth of that.
const MaxSize = 128 << 20

// A Vendor is a maker of processors, by the name that the processor gives (CPUID, leaf 0).
type Vendor string

// The two that there is microcode of.
const (
	Intel Vendor = "GenuineIntel"
	AMD   Vendor = "AuthenticAMD"
)

// Vendors are all of them, in the order that their files have in an archive.
func Vendors() []Vendor { return []Vendor{AMD, Intel} }

// Name is what people call the maker.
func (v Vendor) Name() string {
	if v == Intel {
		return "Intel"
	}
	return "AMD"
}

// A Processor is a kind of processor that there is microcode for.
type Processor struct {
	Signature uint32 // of CPUID leaf 1, register EAX
	Platforms uint32 // which of eight platforms, a bit each (Intel alone)
	Revision  uint32 // of the microcode
}

// Name is family, model and stepping in hexadecimal, as Intel's files are named and
// /proc/cpuinfo has them: "06-9e-0a".
func (p Processor) Name() string { return SignatureName(p.Signature) }

// SignatureName names a processor by its signature (Intel SDM volume 2A, CPUID, figure
// 3-6; AMD64 APM volume 3, appendix E).
func SignatureName(signature uint32) string {
	family, model := signature>>8&0xf, signature>>4&0xf
	if family >= 6 {
		model |= signature >> 16 & 0xf << 4
	}
	if family == 0xf {
		family += signature >> 20 & 0xff
	}
	return fmt.Sprintf("%02x-%02x-%02x", family, model, signature&0xf)
}

// A Set is microcode of both makers. The zero value is empty.
type Set struct {
	intel []update
	amd   []container
}

// Add takes a file over: one of Intel's with updates, one of AMD's with containers, or an
// early archive with either.
func (s *Set) Add(data []byte) error {
	switch {
	case len(data) == 0:
		return errors.New("is empty")
	case len(data) > MaxSize:
		return fmt.Errorf("has %d bytes, more than %d", len(data), MaxSize)
	case bytes.HasPrefix(data, []byte(archiveMagic)):
		return s.addArchive(data)
	case len(data) >= 4 && binary.LittleEndian.Uint32(data) == amdMagic:
		return s.addAMD(data)
	}
	return s.addIntel(data)
}

// addIntel keeps of updates for the same processors the newest: those of several
// processors are in a file for each of these.
func (s *Set) addIntel(data []byte) error {
	updates, err := parseIntel(data)
	if err != nil {
		return fmt.Errorf("is not microcode of Intel's: %w", err)
	}
	for _, u := range updates {
		at := slices.IndexFunc(s.intel, func(have update) bool { return slices.Equal(have.fits, u.fits) })
		switch {
		case at < 0:
			s.intel = append(s.intel, u)
		case int32(s.intel[at].revision) < int32(u.revision): // it is signed
			s.intel[at] = u
		}
	}
	slices.SortFunc(s.intel, func(a, b update) int {
		return cmp.Or(cmp.Compare(a.fits[0].signature, b.fits[0].signature), cmp.Compare(a.fits[0].platforms, b.fits[0].platforms), bytes.Compare(a.data, b.data))
	})
	return nil
}

// maxAMDContainers bounds how many are compared with each other: one a family of
// processors, and linux-firmware has a file for each.
const maxAMDContainers = 256

// addAMD keeps the order: Linux takes the first container that knows the processor.
func (s *Set) addAMD(data []byte) error {
	containers, err := parseAMD(data)
	if err != nil {
		return fmt.Errorf("is not microcode of AMD's: %w", err)
	}
	for _, c := range containers {
		if len(s.amd) >= maxAMDContainers {
			return fmt.Errorf("has more than %d containers of AMD's", maxAMDContainers)
		}
		if !slices.ContainsFunc(s.amd, func(have container) bool { return bytes.Equal(have.data, c.data) }) {
			s.amd = append(s.amd, c)
		}
	}
	return nil
}

// Has reports whether there is any of a maker's.
func (s *Set) Has(v Vendor) bool { return v == Intel && len(s.intel) > 0 || v == AMD && len(s.amd) > 0 }

// Of returns what the set has of one maker.
func (s *Set) Of(v Vendor) *Set {
	if v == Intel {
		return &Set{intel: s.intel}
	}
	return &Set{amd: s.amd}
}

// Merge takes over what another set has of a maker.
func (s *Set) Merge(from *Set, v Vendor) error {
	if !from.Has(v) {
		return nil
	}
	return s.addFile(v, from.File(v))
}

// File is one maker's part, as Linux wants it: one update or container after the other.
func (s *Set) File(v Vendor) []byte {
	var out []byte
	if v == Intel {
		for _, u := range s.intel {
			out = append(out, u.data...)
		}
		return out
	}
	for _, c := range s.amd {
		out = append(out, c.data...)
	}
	return out
}

// Processors lists those that there is microcode of a maker's for, by their signature.
func (s *Set) Processors(v Vendor) []Processor {
	var all []Processor
	if v == Intel {
		for _, u := range s.intel {
			for _, f := range u.fits {
				all = append(all, Processor{f.signature, f.platforms, u.revision})
			}
		}
	}
	if v == AMD {
		for _, c := range s.amd {
			all = append(all, c.processors...)
		}
	}
	slices.SortFunc(all, func(a, b Processor) int {
		return cmp.Or(cmp.Compare(a.Signature, b.Signature), cmp.Compare(a.Platforms, b.Platforms), cmp.Compare(a.Revision, b.Revision))
	})
	return slices.Compact(all)
}

// Names are the processors' names, each once.
func (s *Set) Names(v Vendor) []string {
	var names []string
	for _, p := range s.Processors(v) {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return slices.Compact(names)
}
