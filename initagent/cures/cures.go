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
	"halogenos.internal/boot/words"
)

// For returns what to do about the state in which a boot stopped, and with these
// facts, a line each: the first line first. It is never empty.
func For(s bootflow.State, f bootflow.Facts) []string {
	if f.Came(bootflow.Reset) == bootflow.Done {
		return []string{
			words.CureResetKeys,
			words.CureResetOther,
		}
	}
	if f.Came(bootflow.Reset) == bootflow.Failed && f.ResetBegun {
		return []string{
			words.CureResetHalf,
			words.CureResetAgain,
		}
	}
	if f.Came(bootflow.KeepHome) == bootflow.Failed && f.KeepHomeBegun {
		return []string{
			words.CureKeepHome,
			words.CureKeepHomeGiveUp,
		}
	}
	var out []string
	for _, about := range []func(bootflow.State, bootflow.Facts) []string{disk, chip, system, keys, root, mounts} {
		out = append(out, about(s, f)...)
	}
	if f.ConsoleAsked {
		out = append(out, words.CureAsked)
	}
	if len(out) == 0 {
		out = append(out, words.CureUnknown)
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
			words.CureNoDisk,
			words.CureDevices,
		}
	case bootflow.TableReadOnly:
		return []string{
			words.CureReadOnly,
			words.CureReadOnlyUnlock,
		}
	case bootflow.TableForeign:
		return []string{words.CureForeignDisk}
	}
	return nil
}

func chip(s bootflow.State, f bootflow.Facts) []string {
	if f.TPM != contract.Required || f.TPMPresent || s.Table == bootflow.TableUnknown {
		return nil
	}
	return []string{
		words.CureTPMOff,
		words.CureTPMUnlock,
		words.CureTPMDead,
	}
}

func system(s bootflow.State, f bootflow.Facts) []string {
	switch {
	case f.Epoch < s.Floor || f.Replaced:
		return []string{words.CureReplaced}
	case f.Came(bootflow.OpenVerity) != bootflow.Failed:
		return nil
	}
	return []string{
		words.CureVerify,
		words.CureRepair,
		words.CureRollback,
		words.CureImage,
	}
}

func keys(s bootflow.State, f bootflow.Facts) []string {
	switch {
	case f.SecureBoot != contract.Required:
		return nil
	case s.Root == bootflow.RootLocked && s.Keys == bootflow.KeysMissing:
		return []string{
			words.CureKeysGone,
			words.CureKeysStranger,
		}
	case s.Root == bootflow.RootLocked && s.Keys == bootflow.KeysOff:
		return []string{words.CureKeysOff}
	case f.Came(bootflow.Enroll) == bootflow.Failed:
		return []string{words.CureEnroll}
	}
	return nil
}

func root(s bootflow.State, f bootflow.Facts) []string {
	switch s.Root {
	case bootflow.RootDamaged:
		return []string{
			words.CureHeader,
			words.CureHeaderElsewhere,
			words.CureHeaderReset,
		}
	case bootflow.RootLocked:
		switch {
		case f.Came(bootflow.Unlock) != bootflow.Failed && f.Came(bootflow.AskKey) != bootflow.Failed:
			return nil
		case f.Epoch < s.Floor || f.Replaced:
			return nil // no key opens the data for this system
		case f.Foreign:
			return []string{words.CureForeign}
		}
		if unreadable(f) {
			return diskFails
		}
		out := []string{words.CureEventLog}
		if f.PIN {
			out = append(out, words.CurePIN)
		}
		if f.SecureBoot == contract.Required && (s.Keys == bootflow.KeysMissing || s.Keys == bootflow.KeysOff) {
			return out // what to do comes with the keys
		}
		return append(out,
			words.CureReseal,
			words.CureGiveUp)
	}
	return nil
}

func mounts(_ bootflow.State, f bootflow.Facts) []string {
	if f.Came(bootflow.AddExtensions) == bootflow.Failed {
		return []string{
			words.CureExtensions,
			words.CureExtensionsOff,
		}
	}
	if f.Came(bootflow.MountState) != bootflow.Failed && f.Came(bootflow.CarryState) != bootflow.Failed && f.Came(bootflow.RestoreState) != bootflow.Failed {
		return nil
	}
	if unreadable(f) {
		return diskFails
	}
	if f.Came(bootflow.RestoreState) == bootflow.Failed {
		return []string{
			words.CureRestore,
			words.CureRestoreCancel,
		}
	}
	return []string{
		words.CureMounts,
		words.CureMountsOther,
	}
}

// unreadable reports whether the disk has failed to read the open root partition. The boot
// before may have told, so that its words are all that there is.
func unreadable(f bootflow.Facts) bool {
	return f.DiskFails || strings.Contains(f.Cause, bootflow.CannotRead)
}

// diskFails is what to do first while there is something to be read.
var diskFails = []string{
	words.CureDiskFails,
	words.CureDiskReplace,
}
