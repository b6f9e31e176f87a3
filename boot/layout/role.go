package layout

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/gpt"
)

// A Role is what a partition of this system is for. The zero value is none.
type Role uint8

// The roles, in the order in which a disk of our own has them: its partitions get the
// numbers 1 to 6 from that. Nothing finds them by number.
const (
	ESP Role = iota + 1
	SystemA
	VerityA
	SystemB
	VerityB
	Root
	// Installer is on an installer stick alone, beside an ESP: the release, and the
	// program that installs it.
	Installer
	// MoreSystemA to MoreVerityB are the second extents of the slots' partitions, which
	// growing makes (Grow). They name no content: the UUIDs of the first extents do.
	MoreSystemA
	MoreVerityA
	MoreSystemB
	MoreVerityB
)

// NoAuto is the attribute of a partition that no system mounts because of its type alone
// (bit 63; Discoverable Partitions Specification, "Partition Attribute Flags"). Our slots
// have it: else another Linux on the disk, started without root=, takes the first of them
// for its own. The specification defines the bit for the types of root and verity partitions
// and not for an ESP, nor for LUKS without a purpose, which nothing mounts by itself; and of
// these bits only the owner of a type may say what they mean (UEFI 2.10, table 5-8).
// Partitions of earlier releases lack it, and it is not a mark: nothing is found by it.
const NoAuto = 1 << 63

// marks are the GPT label and type by which a partition of each role is known.
var marks = map[Role]struct {
	label string
	kind  gpt.GUID
}{
	ESP:       {ESPLabel, TypeESP},
	SystemA:   {SlotA.SystemLabel(), TypeRoot},
	VerityA:   {SlotA.VerityLabel(), TypeRootVerity},
	SystemB:   {SlotB.SystemLabel(), TypeRoot},
	VerityB:   {SlotB.VerityLabel(), TypeRootVerity},
	Root:      {RootLabel, TypeLUKS},
	Installer: {InstallerLabel, TypeData},

	MoreSystemA: {SlotA.SystemLabel() + moreSuffix, TypeMore},
	MoreVerityA: {SlotA.VerityLabel() + moreSuffix, TypeMore},
	MoreSystemB: {SlotB.SystemLabel() + moreSuffix, TypeMore},
	MoreVerityB: {SlotB.VerityLabel() + moreSuffix, TypeMore},
}

// moreSuffix is what the label of a second extent has behind that of the first.
const moreSuffix = "-2"

// Label is the GPT label of the partition that has the role.
func (r Role) Label() string { return marks[r].label }

// Type is the GPT type of the partition that has the role.
func (r Role) Type() gpt.GUID { return marks[r].kind }

// More is the role of the second extent of a slot's partition; none for other roles.
func (r Role) More() Role {
	if r < SystemA || r > VerityB {
		return 0
	}
	return r - SystemA + MoreSystemA
}

// String returns the label.
func (r Role) String() string {
	if m, ok := marks[r]; ok {
		return m.label
	}
	return "no partition"
}

// attributes are those of a partition that is made for the role.
func (r Role) attributes() uint64 {
	if kind := r.Type(); kind == TypeRoot || kind == TypeRootVerity {
		return NoAuto
	}
	return 0
}

// is reports whether a partition carries the role's marks.
func (r Role) is(p gpt.Partition) bool { return p.Type == r.Type() && p.Label == r.Label() }

// RoleOf is the role whose marks a partition carries; 0 for a partition of another system.
// Several partitions may carry the same marks, so it chooses nothing: Find does.
func RoleOf(p gpt.Partition) Role {
	for r := range marks {
		if r.is(p) {
			return r
		}
	}
	return 0
}

// ErrMissing says that no partition of a table has a role.
var ErrMissing = errors.New("the disk lacks a partition")

// ErrAmbiguous says that several partitions of a table could have a role. None of them
// is chosen: what is written to the wrong one is lost.
var ErrAmbiguous = fmt.Errorf("%w: two of its partitions look alike", ErrForeign)

// Find returns the one partition that has the role's type and label. Partitions of other
// systems may lie before it, between, and after it, and an attacker who adds some chooses nothing
// by that: with a second one of the same marks there is an error (ErrAmbiguous). What is
// in it is judged by others: a slot by its root hash, the root partition by its header.
func Find(t *gpt.Table, r Role) (gpt.Partition, error) {
	return single(t, r, r.is)
}

// FindESP is Find for the EFI system partition that the boot manager was started from, by
// its UUID, which the boot loader interface names. Another system on the disk may have one
// with the same label. The zero UUID is for a loader that does not say; for OwnESP see there.
// One without our label is another system's, which somebody has copied this system's boot
// manager to, where another one has it: the error wraps ErrForeign, since nothing may be
// written there. Where none has, it is ours all the same: somebody has labelled it again.
func FindESP(t *gpt.Table, started gpt.GUID) (gpt.Partition, error) {
	if started.IsZero() {
		return Find(t, ESP)
	}
	own := OwnESP(started, t.Disk)
	found, err := single(t, ESP, func(p gpt.Partition) bool { return p.Type == TypeESP && (p.UUID == started || p.UUID == own) })
	if err != nil || ESP.is(found) {
		return found, err
	}
	for _, p := range t.Partitions {
		if p.Number != found.Number && RoleOf(p) == ESP {
			return gpt.Partition{}, fmt.Errorf("%w: the boot manager was started from partition %d (%q), which is another system's EFI system partition: this system's has the label %q. Choose the entry of that in the firmware's boot menu, or give the partition this label",
				ErrForeign, found.Number, found.Label, ESP)
		}
	}
	return found, nil
}

func single(t *gpt.Table, r Role, is func(gpt.Partition) bool) (found gpt.Partition, err error) {
	for _, p := range t.Partitions {
		switch {
		case !is(p):
		case found.Number != 0:
			return gpt.Partition{}, fmt.Errorf("%w: %d and %d could both be %q (type %s); give the one that is not this system's another label", ErrAmbiguous, found.Number, p.Number, r, r.Type())
		default:
			found = p
		}
	}
	if found.Number == 0 {
		return gpt.Partition{}, fmt.Errorf("%w: none has the label %q and the type %s", ErrMissing, r, r.Type())
	}
	return found, nil
}

// Insert gives the table a partition with that role and the lowest number that is free.
func Insert(t *gpt.Table, r Role, uuid gpt.GUID, first, last uint64) gpt.Partition {
	number := 1
	for used := true; used; {
		if _, used = t.ByNumber(number); used {
			number++
		}
	}
	made := gpt.Partition{Number: number, Type: r.Type(), UUID: uuid, First: first, Last: last, Attributes: r.attributes(), Label: r.Label()}
	at, _ := slices.BinarySearchFunc(t.Partitions, number, func(p gpt.Partition, n int) int { return p.Number - n })
	t.Partitions = slices.Insert(t.Partitions, at, made)
	return made
}
