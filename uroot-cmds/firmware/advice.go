package main

import (
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/initagent/tpm"
)

// advise says what somebody should do about the facts, the most urgent first.
func (f *facts) advise() []string {
	advice := []string{}
	add := func(such bool, format string, args ...any) {
		if such {
			advice = append(advice, fmt.Sprintf(format, args...))
		}
	}
	add(f.SecureBoot == "off", "Secure Boot is off, so that any system starts on this machine: switch it on in the firmware's setup (restart with `systemctl reboot --firmware-setup`), and set a password there.")
	add(f.SecureBoot == "setup mode", "The firmware has no Platform Key, so that anyone who starts a system can give it keys: restart the machine, which enrolls its own, or look at what it says then.")
	add(f.SecureBoot == "absent", "The firmware has no Secure Boot: only the TPM tells another system from this one.")
	add(f.SecureBoot == "unknown", "The firmware's variables cannot be read: is efivarfs mounted (mount -t efivarfs efivarfs /sys/firmware/efi/efivars)?")
	add(f.test, "One of the keys is a test key whose secret half was published: with it anybody can sign for this machine. Update the firmware, clear its Secure Boot keys in the setup, and start again: the machine makes its own.")
	add(f.foreign && f.DBX == 0, "db has certificates of others and dbx is empty, so that programs of theirs with known holes start: restore the factory keys in the firmware's setup, or update the firmware, and enroll again.")
	switch {
	case f.Processor == nil || f.Processor.Virtual || f.unreported: // a hypervisor loads none
	case f.older:
		add(true, "The UKI has newer microcode (%s) than runs: Linux has not taken it. The kernel's log says why (dmesg | grep microcode).", f.Available)
	default:
		add(f.Available == "" && slices.Contains(microcode.Vendors(), microcode.Vendor(f.Processor.Vendor)),
			"The UKI has no microcode for this processor: what runs is what the firmware brings. Update the firmware; the distributor can put microcode into the image.")
	}
	switch {
	case errors.Is(f.tpmError, tpm.ErrAbsent):
		add(true, "There is no TPM, or it is switched off in the firmware's setup (Security Device, PTT, fTPM): without one the recovery key is asked for at each start, or nothing is encrypted.")
	case f.tpmError != nil:
		add(true, "The TPM cannot be asked: %v.", f.tpmError)
	default:
		add(!f.TPM.SHA256, "The TPM's SHA-256 bank is off: switch it on in the firmware's setup. The root partition cannot be bound to what started.")
		add(f.TPM.Locked, "The TPM is locked after wrong passwords: it gives nothing that has a password until some time has passed with the machine on.")
	}
	add(f.Updater != "" && f.Updater != updaterStarts, "fwupd cannot update the firmware, which does not start its program (%s): a system that has proven itself signs it at its next start, and says there what is wrong.", f.Updater)
	for _, u := range f.Updates {
		add(u.Status != 0, "An update of the firmware (%s) did not succeed: `fwupdmgr get-results` may say more.", u.Part)
	}
	return advice
}
