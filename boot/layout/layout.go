// Package layout says what is where on a machine's disk: the partitions, their
// labels and types, their sizes, and how a slot's partitions name their content.
//
// It refuses to look at devices and it never finds a slot by its letter: a
// slot is found by the root hash that its partition UUIDs spell.
package layout

import (
	"fmt"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/verity"
)

// A Slot is one of the two places a release can live in. The zero value is no
// slot.
type Slot uint8

// The two slots.
const (
	SlotA Slot = iota + 1
	SlotB
)

// Slots lists both slots in the order of their partitions.
var Slots = [...]Slot{SlotA, SlotB}

// Valid reports whether s is A or B.
func (s Slot) Valid() bool { return s == SlotA || s == SlotB }

// Other returns the slot that s is not. The other of no slot is not a slot.
func (s Slot) Other() Slot {
	switch s {
	case SlotA:
		return SlotB
	case SlotB:
		return SlotA
	}
	return 0
}

// String returns "a" or "b", as in the partition labels.
func (s Slot) String() string {
	switch s {
	case SlotA:
		return "a"
	case SlotB:
		return "b"
	}
	return "none"
}

// MarshalText writes the slot as its letter.
func (s Slot) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Slot) UnmarshalText(text []byte) error {
	switch string(text) {
	case "a":
		*s = SlotA
	case "b":
		*s = SlotB
	case "none":
		*s = 0
	default:
		return fmt.Errorf("slot %q is neither a nor b", text)
	}
	return nil
}

// SystemLabel is the GPT label of the slot's system partition.
func (s Slot) SystemLabel() string { return "system-" + s.String() }

// VerityLabel is the GPT label of the slot's verity partition.
func (s Slot) VerityLabel() string { return "verity-" + s.String() }

// System is the role of the slot's system partition; none for no slot.
func (s Slot) System() Role {
	switch s {
	case SlotA:
		return SystemA
	case SlotB:
		return SystemB
	}
	return 0
}

// Verity is the role of the slot's verity partition; none for no slot.
func (s Slot) Verity() Role {
	if !s.Valid() {
		return 0
	}
	return s.System() + 1
}

// Labels of the partitions that belong to no slot.
const (
	ESPLabel       = "esp"
	RootLabel      = "root"
	InstallerLabel = "halogen-installer"
)

// IsInstaller reports whether a disk is an installer stick: it has an ESP and the
// installer's partition, and no more.
func IsInstaller(t *gpt.Table) bool {
	_, err := Find(t, Installer)
	return err == nil && len(t.Partitions) == 2
}

// Partition types: UEFI 2.10 section 5.3.3 for the ESP, this project's own for the second
// extents of slots (no system mounts them or takes them for a root), the Discoverable
// Partitions Specification (x86-64) for the rest.
var (
	TypeESP        = gpt.MustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	TypeRoot       = gpt.MustGUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
	TypeRootVerity = gpt.MustGUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
	TypeData       = gpt.MustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4") // Linux file system
	TypeMore       = gpt.MustGUID("8e64a93c-f628-47d1-9ccb-fa039cd09079")
	TypeLUKS       = gpt.MustGUID("ca7d7ccb-63ed-4c53-861c-1742536059cc")
)

// Sizes in bytes.
const (
	// ESPSize holds two UKIs, their successors while they are being replaced,
	// and the boot manager. A release may ask for more, up to MaxESP.
	ESPSize = 512 << 20
	MaxESP  = 16 << 30
	// Align is what every partition that we make starts and ends on.
	Align = 1 << 20
	// MinRoot is the least that is worth calling a root partition: 16 MiB go
	// to the LUKS2 header.
	MinRoot = 256 << 20
	// MaxSlot bounds the slot size that a boot contract may claim.
	MaxSlot = 64 << 30
)

// AlignUp rounds a size in bytes up to a whole number of Align.
func AlignUp(size int64) int64 { return (size + Align - 1) / Align * Align }

// VeritySize is the size in bytes of the verity partition of a slot whose
// system partition has slotSize bytes: room for the tree of a full slot.
func VeritySize(slotSize int64) (int64, error) {
	size, err := verity.TreeSize(uint64(slotSize) / verity.BlockSize)
	if err != nil {
		return 0, fmt.Errorf("verity tree of a slot of %d bytes: %w", slotSize, err)
	}
	return AlignUp(size), nil
}

// ValidESP reports whether an installation can make an EFI system partition of so many bytes.
func ValidESP(size int64) bool { return size >= ESPSize && size <= MaxESP && size%Align == 0 }

// LeastDisk is the size in bytes, a whole number of Align, of the smallest disk that has
// room for everything a machine makes on it. The alternate table takes a part of the last
// Align alone, so that a disk may do with a little less.
func LeastDisk(espSize, slotSize int64) (int64, error) {
	tree, err := VeritySize(slotSize)
	if err != nil {
		return 0, err
	}
	return Align + espSize + 2*(slotSize+tree) + MinRoot + Align, nil
}

// SystemUUID is the partition UUID of the system partition whose content has
// this root hash: the hash's first 128 bits, in the order of the UUID's text
// form (Discoverable Partitions Specification, "Partition UUIDs").
func SystemUUID(root verity.Root) gpt.GUID { return gpt.GUID(root[:16]) }

// VerityUUID is the partition UUID of the matching verity partition: the root
// hash's last 128 bits.
func VerityUUID(root verity.Root) gpt.GUID { return gpt.GUID(root[16:]) }
