// Package contract is the boot contract: the facts that a UKI carries in its
// initramfs about the system it boots. They are signed with the UKI.
//
// It refuses whatever it does not know: an unknown field, a version that is
// not a plain decimal number, a size that no slot can have. A contract that
// does not parse boots nothing.
package contract

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/verity"
)

// Path is where the contract lies in the initramfs. It is the only file of the
// first, uncompressed cpio archive of the UKI's .initrd section, so that it
// can be read without unpacking anything.
const Path = "halogen/contract.json"

// Format is the number of this format; a contract with another is refused.
const Format = 1

// MaxSize bounds the contract's encoding in bytes, the release key included.
const MaxSize = 256 << 10

// A Version is a release's number. Versions are decimal numbers, compared as
// numbers, and zero is none.
type Version uint64

// MaxVersion is the greatest version; it fits in a signed 64-bit integer, so
// that no other tool's comparison overflows.
const MaxVersion Version = 1<<63 - 1

// ParseVersion reads a version: decimal digits without sign or leading zero.
func ParseVersion(s string) (Version, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("version %q is not a decimal number from 1 to %d without leading zeros", s, MaxVersion)
	}
	return Version(n), nil
}

// String returns the decimal form.
func (v Version) String() string { return strconv.FormatUint(uint64(v), 10) }

// MarshalText writes the decimal form.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what ParseVersion accepts.
func (v *Version) UnmarshalText(text []byte) error {
	parsed, err := ParseVersion(string(text))
	if err != nil {
		return err
	}
	*v = parsed
	return nil
}

// A Requirement says what the machine does when something is missing.
type Requirement string

// Requirements. The zero value is not valid: a contract says which it wants.
const (
	Required Requirement = "required" // stop, and say how to provide it
	Optional Requirement = "optional" // say that it is missing, and go on
)

// VendorKeys says which certificates of others go into db beside our own.
type VendorKeys string

// The choices of VendorKeys.
const (
	VendorAuto      VendorKeys = "auto"      // where option ROMs need them
	VendorNone      VendorKeys = "none"      // never
	VendorMicrosoft VendorKeys = "microsoft" // always the firmware vendor's defaults
)

// Hex is a byte string written in hexadecimal.
type Hex []byte

// MarshalText writes lower-case hexadecimal digits.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText reads hexadecimal digits.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

// A Contract holds the facts.
type Contract struct {
	Format  int     `json:"format"`
	ImageID string  `json:"image_id"`
	Arch    string  `json:"arch"`
	Version Version `json:"version"`
	// Epoch is raised by the distributor when older releases must no longer
	// boot; the TPM's floor follows it.
	Epoch uint64 `json:"epoch"`

	// SourceDate is the date of everything in the release, in seconds since
	// 1970: the earliest that it can be on a machine that runs it.
	SourceDate int64 `json:"source_date"`

	RootHash Hex `json:"root_hash"` // of the verity tree, 32 bytes
	Salt     Hex `json:"salt"`      // of the verity tree, fixed per image ID
	// ImageSize is the size in bytes of the system image, whole verity blocks.
	ImageSize int64 `json:"image_size"`
	// SlotSize is the size in bytes of a system partition.
	SlotSize int64 `json:"slot_size"`

	// ReleaseKey is the pinned OpenPGP public key (binary, one transferable
	// key). Without one, releases are not signed, and the machine says so.
	ReleaseKey []byte `json:"release_key,omitempty"`

	SecureBoot     Requirement `json:"secure_boot"`
	TPM            Requirement `json:"tpm"`
	VendorKeys     VendorKeys  `json:"vendor_keys"`
	RootFileSystem string      `json:"root_file_system"` // ext4 or btrfs
	// WatchdogSeconds is how long the hardware watchdog, handed over running,
	// waits for the system to feed it. Zero: the system feeds none.
	WatchdogSeconds int `json:"watchdog_seconds"`
}

// MaxWatchdogSeconds bounds WatchdogSeconds: a machine that hangs is to restart
// within the hour.
const MaxWatchdogSeconds = 3600

// Date is SourceDate.
func (c *Contract) Date() time.Time { return time.Unix(c.SourceDate, 0).UTC() }

// Root is the root hash as the verity package has it. Only a contract that
// Validate accepts has one.
func (c *Contract) Root() verity.Root { return verity.Root(c.RootHash) }

// VerityParams are the parameters of the system image's tree. They come from
// the signed UKI, never from the superblock on the disk.
func (c *Contract) VerityParams() verity.Params {
	uuid := layout.VerityUUID(c.Root())
	return verity.Params{
		DataBlocks: uint64(c.ImageSize) / verity.BlockSize,
		Salt:       c.Salt,
		UUID:       uuid,
	}
}

// Validate reports the first thing that is wrong with the contract.
func (c *Contract) Validate() error {
	switch {
	case c.Format != Format:
		return fmt.Errorf("boot contract has format %d, want %d", c.Format, Format)
	case !ValidID(c.ImageID):
		return fmt.Errorf("image ID %q: want 1 to 64 of a-z, 0-9 and '-', starting with a letter", c.ImageID)
	case !ValidArch(c.Arch):
		return fmt.Errorf("architecture %q: want 1 to 32 of a-z, 0-9 and '_'", c.Arch)
	case c.Version == 0 || c.Version > MaxVersion:
		return fmt.Errorf("version %d is out of range", c.Version)
	case c.SourceDate < 0:
		return fmt.Errorf("source date %d lies before 1970", c.SourceDate)
	case len(c.RootHash) != len(verity.Root{}):
		return fmt.Errorf("root hash has %d bytes, want %d", len(c.RootHash), len(verity.Root{}))
	case len(c.Salt) == 0 || len(c.Salt) > 256:
		return fmt.Errorf("salt has %d bytes, want 1 to 256", len(c.Salt))
	case c.ImageSize <= 0 || c.ImageSize%verity.BlockSize != 0:
		return fmt.Errorf("image size %d is not a positive multiple of %d", c.ImageSize, verity.BlockSize)
	case c.SlotSize <= 0 || c.SlotSize%layout.Align != 0 || c.SlotSize > layout.MaxSlot:
		return fmt.Errorf("slot size %d is not a multiple of %d up to %d", c.SlotSize, layout.Align, int64(layout.MaxSlot))
	case c.ImageSize > c.SlotSize:
		return fmt.Errorf("image of %d bytes does not fit into a slot of %d", c.ImageSize, c.SlotSize)
	}
	return c.validateChoices()
}

func (c *Contract) validateChoices() error {
	for _, r := range []struct {
		name string
		have Requirement
	}{{"secure_boot", c.SecureBoot}, {"tpm", c.TPM}} {
		if r.have != Required && r.have != Optional {
			return fmt.Errorf("%s is %q, want required or optional", r.name, r.have)
		}
	}
	if c.WatchdogSeconds < 0 || c.WatchdogSeconds > MaxWatchdogSeconds {
		return fmt.Errorf("watchdog_seconds is %d, want 0 to %d", c.WatchdogSeconds, MaxWatchdogSeconds)
	}
	switch c.VendorKeys {
	case VendorAuto, VendorNone, VendorMicrosoft:
	default:
		return fmt.Errorf("vendor_keys is %q, want auto, none or microsoft", c.VendorKeys)
	}
	switch c.RootFileSystem {
	case "ext4", "btrfs":
	default:
		return fmt.Errorf("root_file_system is %q, want ext4 or btrfs", c.RootFileSystem)
	}
	return nil
}

// ValidID reports whether s can be an image ID. It is part of file names on
// the ESP, where '_' and '+' end it, and of URLs.
func ValidID(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && s[0] >= 'a' && s[0] <= 'z' && only(s, "-")
}

// ValidArch reports whether s can be an architecture's name, such as x86_64.
func ValidArch(s string) bool { return len(s) >= 1 && len(s) <= 32 && only(s, "_") }

func only(s, extra string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != extra[0] {
			return false
		}
	}
	return true
}

// Encode returns the contract as it lies in the initramfs.
func (c *Contract) Encode() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode boot contract: %w", err)
	}
	return append(out, '\n'), nil
}

// Parse reads what Encode wrote.
func Parse(text []byte) (*Contract, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("boot contract has %d bytes, more than %d", len(text), MaxSize)
	}
	c := new(Contract)
	if err := strictjson.Decode(text, c); err != nil {
		return nil, fmt.Errorf("parse boot contract: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("boot contract: %w", err)
	}
	return c, nil
}
