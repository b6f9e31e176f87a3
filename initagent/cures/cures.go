// Package cures says which of the recovery console's commands cure what stopped
// a boot.
//
// It refuses to guess: where a situation has no cure at the console it says what
// to do elsewhere, and nothing that destroys data comes first.
package cures

import (
	"strings"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
)

// For returns what to do about the state in which a boot stopped, and with these
// facts, a line each: the first line first. It is never empty.
func For(s bootflow.State, f bootflow.Facts) []string {
	if f.Came(bootflow.Reset) == bootflow.Done {
		return []string{
			"Open the firmware's setup, clear its Secure Boot keys (Setup Mode), leave Secure Boot enabled, and start again: the machine makes itself new, and shows a new recovery key.",
			"Another system may be installed instead: nothing on this disk is wanted any more.",
		}
	}
	if f.Came(bootflow.Reset) == bootflow.Failed && f.ResetBegun {
		return []string{
			"The keys to the data are overwritten, at least in part: most likely nothing opens it any more, with no recovery key.",
			"`reset` does all of it once more, and then the rest. If it fails again, the line above says at what: a disk that cannot be written is to be replaced.",
		}
	}
	if f.Came(bootflow.KeepHome) == bootflow.Failed && f.KeepHomeBegun {
		return []string{
			"Each start goes on with it, and begins with what is left. `unlock`, with the recovery key, opens the root partition at /run/state; /home is whole, in bind/home there. If the line above says that the disk fails, copy it before anything else.",
			"To give it up, after `unlock`: `rm /run/state/halogen/keep-home`. The system then starts with what is not deleted yet.",
		}
	}
	var out []string
	for _, about := range []func(bootflow.State, bootflow.Facts) []string{disk, chip, system, keys, root, mounts} {
		out = append(out, about(s, f)...)
	}
	if f.ConsoleAsked {
		out = append(out, "`slots` shows the two systems, and `rollback` starts the other one from now on.")
	}
	if len(out) == 0 {
		out = append(out, "`slots` shows the two systems, and `dmesg` what was said so far; `exit` starts again.")
	}
	return out
}

// ClearsKeys reports whether what is to be done is to clear the firmware's Secure Boot keys.
func ClearsKeys(s bootflow.State, f bootflow.Facts) bool {
	return f.Came(bootflow.Reset) == bootflow.Done || f.SecureBoot == contract.Required && (s.Keys == bootflow.KeysForeign || f.Came(bootflow.Enroll) == bootflow.Failed)
}

func disk(s bootflow.State, _ bootflow.Facts) []string {
	switch s.Table {
	case bootflow.TableUnknown:
		return []string{
			"Look whether the disk is attached and the firmware's setup lists it; detach a copy of it, or a stick with the same partitions. Then `exit`.",
			"`blkid` and `dmesg` show what the kernel has found.",
		}
	case bootflow.TableReadOnly:
		return []string{
			"Nothing was written. Switch the disk's write protection off, if it has one. Many a worn-out SSD can only be read: then copy your data before anything else.",
			"`unlock`, with the recovery key, opens the data to be read, at /run/state.",
		}
	case bootflow.TableForeign:
		return []string{"Nothing was written to the disk. If it is the right one, install the system on it again."}
	}
	return nil
}

func chip(s bootflow.State, f bootflow.Facts) []string {
	if f.TPM != contract.Required || f.TPMPresent || s.Table == bootflow.TableUnknown {
		return nil
	}
	return []string{
		"Switch the TPM on in the firmware's setup, or switch the machine off and on when it was on. Then `exit`.",
		"Without it the data can still be reached here: `unlock`, with the recovery key.",
		WithoutTPM,
	}
}

// WithoutTPM is how the owner of a machine goes on whose system requires a TPM, when that
// has died. An update never makes it do without one.
const WithoutTPM = "If the TPM has died there are two ways to go on with your data. Either put in a TPM that works (which may mean another mainboard): started with it, this system asks for the recovery key, and binds itself to the new TPM. " +
	"Or install an image that its maker has built with TPM=optional, and keep the root partition (`halogen install --keep-root`): it starts by the recovery key, without a TPM."

func system(s bootflow.State, f bootflow.Facts) []string {
	switch {
	case f.Epoch < s.Floor || f.Replaced:
		return []string{"This system was replaced by a newer one for good. `slots` shows the two systems, and `rollback` starts the other one, if there is one."}
	case f.Came(bootflow.OpenVerity) != bootflow.Failed:
		return nil
	}
	return []string{
		"`verify` says which slot is damaged, and where first.",
		"`repair` writes its bad blocks again, from the other slot as far as that holds the same; then `exit`.",
		"`rollback` starts the other system from now on, if it is whole.",
		"If none of it helps, write the system image into its slot from the installation medium: the data is not touched.",
	}
}

func keys(s bootflow.State, f bootflow.Facts) []string {
	switch {
	case f.SecureBoot != contract.Required:
		return nil
	case s.Root == bootflow.RootLocked && s.Keys == bootflow.KeysMissing:
		return []string{
			"The firmware has lost its Secure Boot keys. If it was you who reset it: `exit`, and type the recovery key when the next start asks for it. That start then asks whether it shall give the firmware this machine's own keys again.",
			"If it was not, somebody else had the machine in hand: do not type the recovery key before you know who.",
		}
	case s.Root == bootflow.RootLocked && s.Keys == bootflow.KeysOff:
		return []string{"Switch Secure Boot on in the firmware's setup, with this machine's own keys, and start again. If the keys are gone, choose Setup Mode there, start again and type the recovery key: that start asks whether it shall give the firmware this machine's own keys again."}
	case f.Came(bootflow.Enroll) == bootflow.Failed:
		return []string{"The line above says what stands in the way, and what to do in the firmware's setup. Then `exit`: the enrollment goes on where it stopped."}
	}
	return nil
}

func root(s bootflow.State, f bootflow.Facts) []string {
	switch s.Root {
	case bootflow.RootDamaged:
		return []string{
			"Leave the disk as it is until you know what happened to it. A copy of the root partition's first 16 MiB, if there is one, puts it right.",
			"What this system makes nothing of, the recovery key may still open: on another machine, with `cryptsetup open` of any Linux. Try that before anything that gives the data up.",
			"If its data is lost or not wanted: `reset` makes the machine new, and keeps the system.",
		}
	case bootflow.RootLocked:
		switch {
		case f.Came(bootflow.Unlock) != bootflow.Failed && f.Came(bootflow.AskKey) != bootflow.Failed:
			return nil
		case f.Epoch < s.Floor || f.Replaced:
			return nil // no key opens the data for this system
		case f.Foreign:
			return []string{"Remove what was added: a command line that was typed at the boot manager is gone at the next start; files lie on the EFI system partition, " +
				"in loader/credentials, loader/addons and EFI/Linux/*.extra.d. Then `exit`."}
		}
		if unreadable(f) {
			return diskFails
		}
		out := []string{"`eventlog` says what differs from the last boot that the TPM opened."}
		if f.PIN {
			out = append(out, "If the PIN is forgotten, or the TPM takes none for now: `exit`, press Enter where the PIN is asked for, and type the recovery key. That start lets you set another PIN.")
		}
		if f.SecureBoot == contract.Required && (s.Keys == bootflow.KeysMissing || s.Keys == bootflow.KeysOff) {
			return out // what to do comes with the keys
		}
		return append(out,
			"If you know what changed (a firmware update, new hardware): `unlock` with the recovery key, then `reseal`, then `exit`.",
			"Without the recovery key nothing opens the data. `reset` gives it up, and makes the machine new.")
	}
	return nil
}

func mounts(_ bootflow.State, f bootflow.Facts) []string {
	if f.Came(bootflow.MountState) != bootflow.Failed && f.Came(bootflow.CarryState) != bootflow.Failed && f.Came(bootflow.RestoreState) != bootflow.Failed {
		return nil
	}
	if unreadable(f) {
		return diskFails
	}
	if f.Came(bootflow.RestoreState) == bootflow.Failed {
		return []string{
			"Each start goes on with it, of either system. On a full disk: `unlock`, delete files below /run/state that nobody needs (not in /run/state/snapshots), then `exit`.",
			"Where nothing has changed yet, `ota rollback --state --cancel` after `unlock` takes the request back, and `ota rollback --state --forget` deletes the snapshot: what it keeps takes its room even where the file is deleted. Leave /run/state/snapshots as it is: it has the only copy of what was taken out of its place.",
		}
	}
	return []string{
		"`unlock` opens the root partition at /run/state: what the line above names is there, and so are your files.",
		"`rollback` starts the other system from now on, if it is this one's settings that do not fit.",
	}
}

// unreadable reports whether the disk has failed to read the open root partition. The boot
// before may have told, so that its words are all that there is.
func unreadable(f bootflow.Facts) bool {
	return f.DiskFails || strings.Contains(f.Cause, bootflow.CannotRead)
}

// diskFails is what to do first while there is something to be read.
var diskFails = []string{
	"The disk fails to read. Copy your files before anything else: `unlock`, with the recovery key, opens what can be read at /run/state. `dmesg` says which sectors are bad.",
	"Then replace the disk: install the system on the new one, and put your files back. A file system that only lost a few blocks can be repaired from another system, once there is a copy.",
}
