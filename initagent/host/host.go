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
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// SystemDirectory is where the system is while the initramfs is the root.
const SystemDirectory = "/sysroot"

// Given is what a boot starts with: the machine, and what its keys are made and kept with.
type Given struct {
	hw.Machine
	Variables enroll.Variables
	// Random is the kernel's generator, which is seeded before user space runs.
	Random io.Reader
	// NewKeys makes Secure Boot keys: secureboot.Generate.
	NewKeys func(random io.Reader, date time.Time) (*secureboot.KeySet, error)
	// Root is where the initramfs is; "/" but in tests.
	Root string
}

// A Host is this machine. A boot fills it in as it comes to know it: what is nil is not
// known yet, or is not there.
type Host struct {
	Given

	Contract     *contract.Contract // of the running system
	State        bootflow.State     // what the loop decides by
	Journal      bootjournal.Journal
	FirmwareKeys enroll.State // what the firmware holds
	Chip         Chip
	Lock         *rootlock.Lock // of the root partition; or nil
	Watching     Watching
	Language     words.Language // of what a person is asked and told
	Keymap       string         // of the keyboard of a screen, as it is said before a question; "" for a US one
	// Listed are the extensions of the running release, as its UKI has them, and Extensions
	// what this boot makes of them; nil as long as the choice was not read.
	Listed     []contract.Extension
	Extensions *extension.Boot
	Found
	Opened
}

// Found is the disk that the firmware started from.
type Found struct {
	// Way leads to the controller that it is at; nil when it need not be that one.
	Way   []bootoption.Function
	Disk  hw.Disk
	Table *gpt.Table
	Names []bls.Name     // the UKIs on the ESP
	Left  firstboot.Left // on the ESP, by an earlier start
	// ModuleKey is the certificate of kernel modules, in DER, that the running release wants in
	// db; nil for none.
	ModuleKey []byte
}

// Opened is what the open root partition has given.
type Opened struct {
	Secret *policy.Secret      // from opening it to the end of the boot, which wipes it
	Record *policy.Record      // that let the TPM release the secret; or nil
	List   *secureboot.List    // of this machine's own; or nil
	Had    rootpart.Guarantees // what this machine has had
	// Phrase is the key of the phrase, from when it is first shown, or the machine secret has
	// come, to the end of the boot, which wipes it; or nil. Somebody who was shown it may get a
	// shell in the same boot: it opens nothing.
	Phrase *policy.Secret
	// PhraseRefused is why the TPM did not give it when it was asked, which it is once a boot.
	PhraseRefused error
	// Released: a secret of this machine is or was in memory in this boot. See bootflow.Facts.
	Released bool
	// Unsettled: the replacement of the machine secret is not finished.
	Unsettled bool
	Volume
}

// NoteSelf puts an entry about the running system into the boot journal.
func (h *Host) NoteSelf(kind journal.Kind, reason string) {
	e := journal.Entry{Kind: kind, Reason: reason, Slot: h.State.Booted, Trial: h.State.Trial}
	if h.Contract != nil {
		e.Version = h.Contract.Version
	}
	h.Journal.Note(e)
}

// BootEntry is what a boot leaves when it hands over.
func (h *Host) BootEntry() journal.Entry {
	return journal.Entry{
		Kind: journal.Boot, Version: h.Contract.Version, Slot: h.State.Booted, Trial: h.State.Trial,
		Reason: h.slotReason(), Watchdog: h.Watching.Reset,
	}
}

// slotReason says why the boot manager chose this system, as far as the names on
// the ESP tell.
func (h *Host) slotReason() string {
	booted, known := h.BootedName()
	if !known {
		return "the file it was started from is not known"
	}
	return bls.Reason(booted, h.Names)
}

// Forget wipes what the boot still knows, and erases what knowing it has left in
// this process.
func (h *Host) Forget() {
	if h.Secret != nil {
		h.Secret.Wipe()
		h.Secret = nil
	}
	luks2.Wipe(h.volumeKey)
	h.volumeKey = nil
	known := h.Phrase != nil
	if known {
		h.Phrase.Wipe()
		h.Phrase = nil
	}
	if h.Released || known {
		h.Collect()
	}
}

// Path is where something of the initramfs is.
func (h *Host) Path(elements ...string) string {
	return filepath.Join(append([]string{h.Root}, elements...)...)
}
