// Package host is the machine as a boot has opened it: the system that its UKI
// carries, the disk and its table, what the firmware holds, the TPM, and the root
// partition with the secret that it gave. What the steps of a boot have in common is
// here, so that they can be packages of their own.
//
// It refuses to decide what a boot does next, and writes no fact about it: that is the
// loop's, in package agent.
package host

import (
	"io"
	"path/filepath"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/vault"
)

// A Host is this machine. A boot fills it in as it comes to know it: what is nil is not
// known yet, or is not there.
type Host struct {
	hw.Machine
	Variables enroll.Variables
	// Random is the kernel's generator, which is seeded before user space runs.
	Random io.Reader
	// Root is where the initramfs is; "/" but in tests.
	Root string

	Contract     *contract.Contract // of the running system
	Disk         hw.Disk            // that the firmware started from
	Table        *gpt.Table
	Names        []bls.Name   // the UKIs on the ESP
	FirmwareKeys enroll.State // what the firmware holds
	Chip         Chip
	Lock         *vault.Lock // of the root partition; or nil
	Opened
}

// Opened is what the open root partition has given.
type Opened struct {
	Secret *policy.Secret      // from opening it to the end of the boot, which wipes it
	Record *policy.Record      // that let the TPM release the secret; or nil
	List   *secureboot.List    // of this machine's own; or nil
	Had    rootpart.Guarantees // what this machine has had
}

// Path is where something of the initramfs is.
func (h *Host) Path(elements ...string) string {
	return filepath.Join(append([]string{h.Root}, elements...)...)
}
