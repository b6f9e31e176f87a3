package config

import (
	"crypto/x509"
	"fmt"
	"regexp"
	"strconv"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/words"
)

// Image is what the system image and the release are: of the section [Image], what the
// build decides by.
type Image struct {
	ImageID  string
	Arch     string
	Epoch    uint64
	ESPSize  int64 // bytes of the EFI system partition
	SlotSize int64 // bytes
	// GrowSlots allows a SlotSize that is larger than that of releases before: machines
	// make their slots larger, where their owners agree.
	GrowSlots   bool
	Compression string // as mkfs.erofs -z takes it; empty for none
	// PlainModules says that the kernel's modules lie in the image without compression.
	PlainModules bool
	BootManager  string // path in the root file system; empty: find it
	// ModuleKey is the distributor's certificate for kernel modules, which
	// vouches for them beside the kernel's own; nil for none.
	ModuleKey *x509.Certificate
	// ModuleTrust is how a machine's kernel comes to trust ModuleKey.
	ModuleTrust string
}

// Machine is what the image's machines require, and how they are set up: the rest of the
// section [Image].
type Machine struct {
	ReleaseKey []byte // OpenPGP transferable public key; empty for none
	SecureBoot contract.Requirement
	TPM        contract.Requirement
	VendorKeys contract.VendorKeys
	// RootPartitionFormat is the file system that machines make on their root
	// partition. The root file system itself is the image, which is EROFS.
	RootPartitionFormat string
	// WatchdogSeconds is how long a watchdog waits for the system; 0 is off.
	WatchdogSeconds int
	// Swap is the size in bytes of the swap space that machines have; 0 is off.
	Swap int64
	// FirstStart says whether machines ask at their first start.
	FirstStart string
}

// The choices of FirstStart.
const (
	AskAtFirstStart  = "ask"
	NoneAtFirstStart = "none"
)

// languageOfScreens takes that of what is asked and told before the system runs.
func (r *reader) languageOfScreens(value string) (err error) {
	r.language, err = words.Find(value)
	return err
}

// plainModules takes how the kernel's modules lie in the image.
func (r *reader) plainModules(value string) error {
	if r.config.PlainModules = value == "plain"; !r.config.PlainModules && value != "unchanged" {
		return fmt.Errorf("%.80q is neither unchanged nor plain (the modules that the initramfs gets are named in [Initramfs])", value)
	}
	return nil
}

func (r *reader) watchdog(value string) error {
	if value == "off" {
		r.config.WatchdogSeconds = 0
		return nil
	}
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n == 0 || n > contract.MaxWatchdogSeconds {
		return fmt.Errorf("%q is neither off nor a number of seconds from 1 to %d", value, contract.MaxWatchdogSeconds)
	}
	r.config.WatchdogSeconds = int(n)
	return nil
}

func (r *reader) imageID(value string) error {
	if !contract.ValidID(value) {
		return fmt.Errorf("%q: want 1 to 64 of a-z, 0-9 and '-', starting with a letter", value)
	}
	r.config.ImageID = value
	return nil
}

func (r *reader) epoch(value string) error {
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return fmt.Errorf("%q is not a number from 0", value)
	}
	r.config.Epoch = n
	return nil
}

func (r *reader) compression(value string) error {
	if value == "none" {
		r.config.Compression = ""
		return nil
	}
	if !regexp.MustCompile(`^(lz4|lz4hc|lzma|deflate|zstd)(,[0-9]{1,3})?$`).MatchString(value) {
		return fmt.Errorf("%q: want none, lz4, lz4hc, lzma, deflate or zstd, with ',LEVEL' if need be", value)
	}
	r.config.Compression = value
	return nil
}
