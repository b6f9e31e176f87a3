// Package bls reads and writes the file names of UKIs on the ESP, which carry
// the boot manager's counters, and knows in which order the boot manager
// prefers them (Boot Loader Specification, "Boot counting"; systemd-boot 257).
//
// It refuses names that are not ours: anything else on the ESP is left alone.
package bls

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/contract"
)

// Directory is where the boot manager looks for UKIs, from the root of the ESP.
const Directory = "EFI/Linux"

// MaxTries bounds the tries that a name may have left. MaxDone bounds those it has
// had: the boot manager goes on counting when it starts a UKI that has none left.
const (
	MaxTries = 99
	MaxDone  = 1<<31 - 1
)

// A Name is the file name of a UKI: <image-id>_<version>.efi once it is
// blessed, <image-id>_<version>+<left>[-<done>].efi while it is on trial.
type Name struct {
	ImageID string
	Version contract.Version
	// Counted is true while the name carries counters: the UKI is on trial.
	Counted bool
	Left    int // tries left
	Done    int // tries used
}

// Parse reads a file name.
func Parse(file string) (Name, error) {
	stem, ok := strings.CutSuffix(file, ".efi")
	if !ok {
		return Name{}, fmt.Errorf("UKI name %q does not end in .efi", file)
	}
	stem, counters, counted := strings.Cut(stem, "+")
	id, version, ok := strings.Cut(stem, "_")
	if !ok || !contract.ValidID(id) {
		return Name{}, fmt.Errorf("UKI name %q is not <image-id>_<version>", file)
	}
	v, err := contract.ParseVersion(version)
	if err != nil {
		return Name{}, fmt.Errorf("UKI name %q: %w", file, err)
	}
	n := Name{ImageID: id, Version: v, Counted: counted}
	if !counted {
		return n, nil
	}
	left, done, both := strings.Cut(counters, "-")
	if n.Left, err = parseCount(left, MaxTries); err == nil && both {
		n.Done, err = parseCount(done, MaxDone)
	}
	if err != nil {
		return Name{}, fmt.Errorf("UKI name %q: %w", file, err)
	}
	if n.String() != file {
		// A file is renamed by what its name says, so no two names may say the same.
		return Name{}, fmt.Errorf("UKI name %q: it would be written %q", file, n)
	}
	return n, nil
}

func parseCount(s string, most uint64) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > most {
		return 0, fmt.Errorf("counter %q is not a number from 0 to %d", s, most)
	}
	return int(n), nil
}

// String returns the file name.
func (n Name) String() string {
	s := n.ImageID + "_" + n.Version.String()
	switch {
	case n.Counted && n.Done > 0:
		s += fmt.Sprintf("+%d-%d", n.Left, n.Done)
	case n.Counted:
		s += fmt.Sprintf("+%d", n.Left)
	}
	return s + ".efi"
}

// Bad reports whether the UKI has no tries left: the boot manager takes it only
// when there is nothing else.
func (n Name) Bad() bool { return n.Counted && n.Left == 0 }

// Trial reports whether the UKI is on trial and still has tries.
func (n Name) Trial() bool { return n.Counted && n.Left > 0 }

// Blessed returns the name without counters.
func (n Name) Blessed() Name { return Name{ImageID: n.ImageID, Version: n.Version} }

// Condemned returns the name with no tries left; what was done is kept.
func (n Name) Condemned() Name {
	n.Counted, n.Left = true, 0
	return n
}

// Tried returns the name that the boot manager gives a UKI which it starts: also one
// that has no tries left, when there is nothing else.
func (n Name) Tried() Name {
	if n.Counted {
		n.Left = max(n.Left-1, 0)
		n.Done = min(n.Done+1, MaxDone)
	}
	return n
}

// Compare orders two names as the boot manager's menu does, the one it starts
// first: those without tries come last, then newer before older, then more
// tries left, then fewer done. All UKIs of an image have the same sort key.
func Compare(a, b Name) int {
	return cmp.Or(
		compareBool(a.Bad(), b.Bad()),
		cmp.Compare(a.ImageID, b.ImageID),
		cmp.Compare(b.Version, a.Version),
		cmp.Compare(b.left(), a.left()),
		cmp.Compare(a.Done, b.Done),
		cmp.Compare(a.String(), b.String()),
	)
}

// left is what the boot manager compares: a blessed UKI has endless tries.
func (n Name) left() int {
	if !n.Counted {
		return MaxTries + 1
	}
	return n.Left
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Choose returns the name that the boot manager starts, and false when there is
// none. It takes a UKI without tries when nothing else is left.
func Choose(names []Name) (Name, bool) {
	if len(names) == 0 {
		return Name{}, false
	}
	return slices.MinFunc(names, Compare), true
}

// Start returns what the boot manager starts and which names there are then. Where
// another UKI has the name already that the started one would get, the boot manager
// starts it uncounted: so there must never be two of one version.
func Start(names []Name) (started Name, then []Name, ok bool) {
	chosen, ok := Choose(names)
	if !ok {
		return Name{}, nil, false
	}
	started = chosen.Tried()
	if slices.Contains(names, started) {
		started = chosen
	}
	then = slices.Clone(names)
	then[slices.Index(names, chosen)] = started
	return started, then, true
}
