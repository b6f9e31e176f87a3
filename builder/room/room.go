// Package room plans how long the partitions of installed machines will do: the system
// partition's slots and the EFI system partition keep the size that they were installed
// with, and releases grow.
//
// It refuses to guess: without releases before, or where they do not grow, it says how
// much is taken and no more.
package room

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
)

// What an ESP holds: the UKIs of two systems, and the boot manager in two
// places, as a spare and while it is replaced. The file system takes some of it, and what
// the machine keeps of its boots needs room too; and so does an update of the firmware, for
// which fwupd wants twice its size and 1 MiB to be free. 32 MiB are a large one.
const (
	ukisOnESP     = 2
	managersOnESP = 4
	// Reserve is what of an ESP is for other things, in bytes.
	Reserve = 72 << 20
)

// ForUKI is how many bytes a UKI may have, for an ESP of so many with such a boot manager.
func ForUKI(esp, bootManager int64) int64 {
	return max(0, esp-Reserve-managersOnESP*bootManager) / ukisOnESP
}

// MaxPast is how many releases before one its growth is judged by.
const MaxPast = 8

// Full is the share in percent from which on a distributor is warned.
const Full = 80

// A Release is what one takes of a machine, all in bytes.
type Release struct {
	Version                 contract.Version
	Image, UKI, BootManager int64
	// Slot and ESP are what machines have whose first release it was, or, for the ESP,
	// one before it.
	Slot, ESP int64
	// Grows says that its machines can make their slots larger.
	Grows bool
}

// Of returns what a release takes, whose UKI has these abilities.
func Of(r *release.Release, able contract.Abilities) Release {
	uki, _ := r.File(release.UKIFile)
	manager, _ := r.File(release.BootManagerFile)
	return Release{r.Version, r.ImageSize, uki.Size, manager.Size, r.SlotSize, able.SmallestESP(), able.Grow}
}

// OfUKI returns what a release takes as far as its UKI of so many bytes tells.
func OfUKI(c *contract.Contract, size int64, able contract.Abilities) Release {
	return Release{Version: c.Version, Image: c.ImageSize, UKI: size, Slot: c.SlotSize, ESP: able.SmallestESP(), Grows: able.Grow}
}

// A Share is how much of a partition a release takes.
type Share struct {
	Used    int64 `json:"used"` // bytes
	Room    int64 `json:"room"` // bytes
	Percent int   `json:"percent"`
	// Growth is how many bytes each of the last releases took more than the one before, on
	// average; 0 where that is not known, or nothing.
	Growth int64 `json:"growth,omitempty"`
	// Left is how many more releases fit that grow so; nil without growth.
	Left *int64 `json:"releases_left,omitempty"`
}

// A Plan is how long the partitions will do.
type Plan struct {
	System Share `json:"system"` // of a slot's system partition
	// UKI is of what the ESP has for each UKI; nil where nothing tells how large it is.
	UKI *Share `json:"uki,omitempty"`
	// ESP is the size in bytes of the smallest that machines have; 0 is not known.
	ESP int64 `json:"esp,omitempty"`
	// Past is how many releases before it growth was judged by.
	Past int `json:"past"`
}

// New plans for a release, after those of before, in any order.
func New(is Release, past []Release) Plan {
	before := slices.DeleteFunc(slices.Clone(past), func(r Release) bool { return r.Version >= is.Version })
	slices.SortFunc(before, func(a, b Release) int { return cmp.Compare(a.Version, b.Version) })
	before = slices.CompactFunc(before, func(a, b Release) bool { return a.Version == b.Version })
	before = before[max(0, len(before)-MaxPast):]
	p := Plan{ESP: is.ESP, Past: len(before)}
	for _, r := range before {
		p.ESP = min(cmp.Or(p.ESP, r.ESP), r.ESP)
	}
	var image, uki int64
	if n := int64(len(before)); n > 0 {
		image, uki = (is.Image-before[0].Image)/n, (is.UKI-before[0].UKI)/n
	}
	p.System = share(is.Image, is.Slot, image)
	if p.ESP > 0 {
		s := share(is.UKI, ForUKI(p.ESP, is.BootManager), uki)
		p.UKI = &s
	}
	return p
}

func share(used, room, growth int64) Share {
	s := Share{Used: used, Room: room, Percent: 100}
	if used < room {
		s.Percent = int(used * 100 / room)
	}
	if growth > 0 {
		left := max(0, room-used) / growth
		s.Growth, s.Left = growth, &left
	}
	return s
}

// Smallest is the smallest ESP that machines may have, which take a release with such
// an ESP after those.
func Smallest(esp int64, past []Release) int64 {
	for _, r := range past {
		esp = min(esp, r.ESP)
	}
	return esp
}

// Lines are the plan for people: what is taken, and what follows from it.
func (p Plan) Lines() []string {
	lines := []string{p.line("the system image", "a slot", p.System)}
	if p.System.Percent >= Full {
		lines = append(lines, fmt.Sprintf("WARNING: %d %% of a slot are taken: machines that are installed keep the slots that they have, and one day a release does not fit. Take out what they do not need", p.System.Percent))
	}
	if p.UKI == nil {
		return lines
	}
	lines = append(lines, p.line("the UKI", fmt.Sprintf("its share of an EFI system partition of %d MiB", p.ESP>>20), *p.UKI))
	if p.UKI.Percent >= Full {
		lines = append(lines, fmt.Sprintf("WARNING: %d %% of the UKI's share of the EFI system partition are taken: machines that are installed keep the one that they have, and one day a UKI does not fit. Take modules out of Modules in [Initramfs]", p.UKI.Percent))
	}
	return lines
}

func (p Plan) line(what, of string, s Share) string {
	text := fmt.Sprintf("%s takes %d %% of %s (%s of %s)", what, s.Percent, of, mebibytes(s.Used), mebibytes(s.Room))
	if s.Left != nil {
		text += fmt.Sprintf("; with %s more in each release, as in the last %d, %d more fit", mebibytes(s.Growth), p.Past, *s.Left)
	}
	return text
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Fits reports why machines that have other releases could not take one.
func Fits(is, on Release) error {
	if most := ForUKI(on.ESP, is.BootManager); is.UKI > most {
		return fmt.Errorf("its UKI has %s, and machines with an EFI system partition of %d MiB have room for %s: build it with fewer modules, or a smaller kernel or splash", mebibytes(is.UKI), on.ESP>>20, mebibytes(most))
	}
	return nil
}

// Unable says which releases have machines with slots of less than size bytes that cannot make
// them larger; empty where there are none. Those machines have to run another release first.
func Unable(size int64, past []Release) string {
	var names []string
	for _, r := range past {
		if r.Slot < size && !r.Grows {
			names = append(names, r.Version.String())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d releases before (%d %%) cannot make their slots larger: %s. Their machines refuse this one: let them take a release with the SlotSize that they have, built by this halogen, and make that a step ('halogen release step')",
		len(names), len(past), len(names)*100/len(past), strings.Join(names, ", "))
}

// Abilities returns what a UKI says of its ESP, for a release with one of size bytes after
// others.
func Abilities(size int64, past []Release) contract.Abilities {
	return contract.Own().WithESP(size, Smallest(size, past))
}
