// Package bootflow decides what a boot does next. Next is one pure function over
// what is on the disk (State) and what this boot has seen so far (Facts); it
// never acts, never waits and never remembers.
//
// It refuses to unlock anything before the system image is verified, and to
// call a slot bad while there is a doubt that is not the slot's.
package bootflow

import (
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

// A Step is what to do next, and why, in words for the console and the journal.
type Step struct {
	Kind   Kind
	Reason string
}

// Next decides. The order of its checks is the order of the boot: nothing is
// written before the machine is known to be ours, nothing is unlocked before
// the system is verified, nothing is handed over before everything is done.
func Next(s State, f Facts) Step {
	for _, decide := range []func(State, Facts) (Step, bool){
		interrupted, table, system, keys, root, pending,
	} {
		if step, ok := decide(s, f); ok {
			if step.Kind == Recovery {
				return Stop(s, f, step.Reason)
			}
			return step
		}
	}
	return Step{SwitchRoot, "the system is verified and everything is in place"}
}

// Stop is how a boot ends that cannot go on: in the recovery console, unless a
// secret was in memory. A shell is root beside process 1 and reads its memory, and
// what the kernel has not used again. So such a boot restarts, and the next one
// opens the console before it unseals anything.
//
// A trial has something better than a console that waits: it is given up by its
// tries, and the system that ran before it starts. So it is, too, where the TPM did not
// open it and nobody has answered the prompt for the recovery key. Where no TPM opens
// anything, the system before it would ask just the same.
func Stop(s State, f Facts, reason string) Step {
	switch {
	case s.Trial && s.Fallback && !f.ConsoleAsked && !f.Answered && (f.Released || f.Came(AskKey) == Failed && f.Came(Unlock) == Failed):
		return Step{Reboot, "the trial cannot go on, and there is a system to fall back to: " + reason}
	case !f.Released:
		return Step{Recovery, reason}
	}
	return Step{RecoverNext, reason}
}

// interrupted is what stops a boot before it begins.
func interrupted(s State, f Facts) (Step, bool) {
	switch {
	case f.PlantedGone:
		return Step{Reboot, f.Planted}, true
	case f.Planted != "":
		return Step{Recovery, f.Planted}, true
	case f.Problem != "":
		return Step{Recovery, f.Problem}, true
	case f.RootLost != "" && f.Came(MountState) == NotTried:
		return Step{Recovery, "the root partition was closed to be made smaller, and does not open again: " + f.RootLost}, true
	case f.Came(Reset) == Done:
		return Step{Recovery, "the root partition is wiped, as was asked for: clear the Secure Boot keys in the firmware's setup, leave Secure Boot enabled, and start again"}, true
	case f.Came(Reset) == Failed && f.ResetBegun:
		return Step{Recovery, "the factory reset that was asked for failed half-way, and the data may be lost already: " + f.Cause}, true
	case f.ConsoleAsked:
		return Step{Recovery, "the recovery console was asked for"}, true
	case f.Noted != "":
		return Step{Recovery, f.Noted}, true
	case f.TPM == contract.Required && !f.TPMPresent && f.TPMFault != "":
		return Step{Recovery, "this system requires a TPM, and this machine's cannot be used: " + f.TPMFault}, true
	case f.TPM == contract.Required && !f.TPMPresent:
		return Step{Recovery, "this machine has no TPM 2.0, or it is switched off: enable it in the firmware's setup (it may be called PTT, fTPM or Security Device), then start again"}, true
	}
	return Step{}, false
}

// table brings the partition table into its shape.
func table(s State, f Facts) (Step, bool) {
	switch s.Table {
	case TableUnknown:
		return Step{Recovery, "the disk that this system was started from was not found"}, true
	case TableInstaller:
		switch f.Came(Install) {
		case NotTried:
			return Step{Install, "this is an installer stick"}, true
		case Done:
			return Step{Reboot, "the installation is complete: take the stick out"}, true
		}
		return Step{Recovery, "nothing was installed: " + f.Cause}, true
	case TableReadOnly:
		return Step{Recovery, "the disk is read-only: it is write-protected, or worn out"}, true
	case TableForeign:
		return Step{Recovery, "nothing was written to the disk: " + f.Cause}, true
	case TableDamaged:
		if f.Came(Heal) == NotTried {
			return Step{Heal, "one copy of the partition table is damaged; the other is good"}, true
		}
		// A table that cannot be written back is not a reason not to boot.
	case TableNew:
		switch {
		case f.Epoch < s.Floor:
			return Step{}, false // never provision for a system that may not run here
		case f.SecureBoot == contract.Required && (s.Keys == KeysForeign || s.Keys == KeysOff):
			// Nothing is written to a machine that could not be finished, or that
			// is in use and only looks new.
			return Step{Recovery, setupModeWanted}, true
		}
		if s.Root == RootLocked {
			return Step{Partition, "the system was installed again: partitions are missing"}, true
		}
		return Step{Partition, "first boot: partitions are missing"}, true
	}
	return Step{}, false
}

// system finds the running UKI's slot and opens it.
func system(s State, f Facts) (Step, bool) {
	switch {
	case f.Epoch < s.Floor:
		return condemn(s, fmt.Sprintf("this system's epoch is %d and the TPM's floor is %d: it was replaced for good", f.Epoch, s.Floor)), true
	case f.Came(OpenVerity) == Failed:
		return condemn(s, "the system image is not what the UKI names: "+f.Cause), true
	case s.Booted.Valid() && s.TreeNamed && f.Came(OpenVerity) == NotTried:
		return Step{OpenVerity, "slot " + s.Booted.String() + " holds the content that the UKI names"}, true
	case f.Came(OpenVerity) == Done:
		return Step{}, false
	case reinstalled(s):
		return Step{MakeTree, "the system was installed again: the verity tree of slot a is missing"}, true
	case provisioned(s):
		return condemn(s, "no slot on this disk holds the content that the UKI names"), true
	}
	return Step{MakeTree, "first boot: the verity tree of slot a is missing"}, true
}

// provisioned reports whether this machine has ever run its system: then
// nothing may be made from scratch on its disk.
func provisioned(s State) bool { return hasRoot(s) || s.Trial }

// hasRoot reports whether this machine's root partition was made. That the UKI's name
// has a counter says less: anybody can rename it.
func hasRoot(s State) bool {
	return s.Root == RootLocked || s.Root == RootOpen || s.Root == RootDamaged
}

// reinstalled reports whether a system was installed beside a root partition that
// was kept. The slot carries the UKI's name, and its tree does not: that tree is
// nobody's, so that nothing is lost by making it. Staging names both at once, and
// where there is anything to fall back to, that is what runs.
func reinstalled(s State) bool {
	return (s.Root == RootLocked || s.Root == RootDamaged) && s.Booted == layout.SlotA && !s.TreeNamed && !s.Trial && !s.Fallback
}

// condemn gives the slot up: the other one boots next, or, where none is left,
// the recovery console opens.
func condemn(s State, reason string) Step {
	if s.Fallback {
		return Step{Condemn, reason}
	}
	return Step{Recovery, reason + "; and there is no other system to fall back to"}
}

// setupModeWanted tells how a new machine gets its own keys.
const setupModeWanted = "Secure Boot is not in Setup Mode: open the firmware's setup, choose to reset or clear the Secure Boot keys (Setup Mode), leave Secure Boot enabled, and start again"

// keys sees to Secure Boot.
func keys(s State, f Facts) (Step, bool) {
	if s.Root == RootAbsent {
		// A first boot has made the partition by now, so that this one was lost. New keys
		// would not bring it back, and would replace what opens it once it is found.
		return Step{}, false
	}
	switch s.Keys {
	case KeysFinished:
		return Step{Reboot, "this machine's Secure Boot keys are enrolled: they are enforced from the next start on"}, true
	case KeysMissing:
		switch {
		case f.Came(Enroll) == Failed && f.EnrollAgain:
			return Step{}, false // the root partition is open, and the firmware starts the system
		case f.Came(Enroll) == Failed && f.SecureBoot == contract.Required:
			return Step{Recovery, "this machine's Secure Boot keys were not enrolled: " + f.Cause}, true
		case f.Came(Enroll) == Failed:
			return Step{}, false
		case provisioned(s) && !f.RootMade && !f.EnrollAgain:
			// The firmware lost its keys, or somebody took them away. Enrolling
			// again by itself would help the one who did it: the TPM decides, or else
			// the owner.
			return Step{}, false
		case !f.TPMPresent && s.Root != RootOpen:
			// Without a TPM the keys have no safe place but the root partition.
			return Step{}, false
		}
		if f.Others && f.Came(AskOthers) == NotTried {
			return Step{AskOthers, "the installer has left the wish that other systems go on starting"}, true
		}
		if f.ModuleKey && f.Came(TrustModules) == NotTried {
			return Step{TrustModules, "the release has kernel modules signed by a key that db would get"}, true
		}
		if f.EnrollAgain {
			return Step{Enroll, "the owner gives the firmware this machine's own Secure Boot keys again"}, true
		}
		return Step{Enroll, "the firmware is in Setup Mode: this machine makes its own Secure Boot keys"}, true
	case KeysForeign, KeysOff:
		if f.SecureBoot == contract.Required && !hasRoot(s) {
			return Step{Recovery, setupModeWanted}, true
		}
	}
	return Step{}, false
}

// noRoot: without a root partition, the system would run with the image's own accounts.
const noRoot = "this disk has no root partition: either it is not this machine's disk, or its partition table was changed. If it was, write back the table of before; `halogen install` makes a new one"

// root makes or opens the root partition.
func root(s State, f Facts) (Step, bool) {
	switch s.Root {
	case RootAbsent:
		if f.SecureBoot == contract.Required || f.TPM == contract.Required {
			return Step{Recovery, noRoot}, true
		}
	case RootBlank, RootUnfinished:
		return Step{MakeRoot, "the root partition has not been made yet"}, true
	case RootDamaged:
		return Step{Recovery, "the root partition was made on this machine, and what is there now is not it: " + f.Cause}, true
	case RootLocked:
		switch {
		case f.ResetAsked && f.Came(Reset) == NotTried && f.Came(Unlock) == NotTried:
			// Before anything is unsealed: a console may follow.
			return Step{Reset, "the running system has asked for a factory reset"}, true
		case f.Came(AskKey) == Failed:
			return Step{Recovery, "the root partition was not opened: " + f.Cause}, true
		case f.Came(Unlock) == Failed && f.Replaced && s.Fallback:
			return Step{Condemn, "the TPM releases no key to this system, since another one has replaced it"}, true
		case f.Came(Unlock) == Failed && f.DiskFails:
			return Step{Recovery, "the TPM has opened the root partition, and its file system cannot be read: " + f.Cause}, true
		case f.Came(Unlock) == Failed:
			return Step{AskKey, "the TPM did not open the root partition: " + f.Cause}, true
		case !f.TPMPresent && f.TPMFault != "":
			return Step{AskKey, "the TPM cannot open the root partition: " + f.TPMFault}, true
		case !f.TPMPresent:
			return Step{AskKey, "there is no TPM to open the root partition"}, true
		case f.PIN:
			return Step{AskPIN, "the root partition is encrypted, and asks for a PIN"}, true
		}
		return Step{Unlock, "the root partition is encrypted"}, true
	}
	return Step{}, false
}

// pending is what a boot does with an open root partition.
func pending(s State, f Facts) (Step, bool) {
	switch {
	case f.Came(MountState) == Done:
		// What was mounted is root's. A step that looks into the system would take it for the image.
		return Step{}, false
	case f.Came(MountState) == Failed:
		// The system image is open and good: this is not the slot's fault.
		return Step{Recovery, "the directories that may change could not be mounted: " + f.Cause}, true
	case f.Came(AddExtensions) == Failed:
		// The system image is good here, too. A trial is given up by its tries (Stop), so that
		// it is never blessed, and the system before it comes with extensions of its own.
		return Step{Recovery, "an essential extension could not be opened: " + f.Cause}, true
	case f.Came(CarryState) == Failed:
		return Step{Recovery, "what may change could not be carried over to this system: " + f.Cause}, true
	case f.KeepHomeBegun && f.Came(KeepHome) != Done:
		// It deletes what would go back, and the request, which may be what is stuck.
		if step, ok := keepHome(s, f); ok {
			return step, true
		}
	}
	switch {
	case f.Came(RestoreState) == Failed:
		return Step{Recovery, "the directories that were to be as before an update are not: " + f.Cause}, true
	case s.Root == RootOpen && f.StateAsked && f.Came(RestoreState) == NotTried:
		// Before a release is staged: that replaces the snapshot.
		return Step{RestoreState, "directories are to be as they were before an update"}, true
	}
	if step, ok := keepHome(s, f); ok {
		return step, true
	}
	if s.Root == RootOpen && !s.Trial {
		if step, ok := newSecret(f); ok {
			return step, true
		}
		// Where somebody has typed the key there is nothing to be shown.
		if f.KeyNoted && f.Came(NewKey) == NotTried && f.Came(Unlock) == Done {
			return Step{NewKey, "the recovery key was not confirmed, or the running system has asked for a new one"}, true
		}
		// One opened by the recovery key need not be one that the TPM gives the phrase to.
		if f.PhraseNoted && f.Came(NewPhrase) == NotTried && f.Came(Unlock) == Done {
			return Step{NewPhrase, "the running system has asked for a new phrase, or nobody has seen the one that there is"}, true
		}
		if step, ok := upkeep(f); ok {
			return step, true
		}
	}
	if step, ok := state(s, f); ok {
		return step, true
	}
	if s.Root == RootOpen && f.Extensions && f.Came(AddExtensions) == NotTried {
		// Last: no other step takes what they bring for the system image.
		return Step{AddExtensions, "this machine has enabled extensions of its release"}, true
	}
	return Step{MountState, "the system image is open"}, true
}

// state sees to whose state this boot runs on. It comes after upkeep: a boot that
// restarts into a trial leaves the trial's as it is, since nothing has changed.
func state(s State, f Facts) (Step, bool) {
	switch {
	case s.Root != RootOpen:
		return Step{}, false
	case f.FirstStart && f.Came(CarryState) == NotTried:
		return Step{CarryState, "this system starts for the first time"}, true
	case f.Unsettled && f.Came(SettleState) == NotTried && !s.Trial:
		return Step{SettleState, "this system has proven itself: its state counts"}, true
	}
	return Step{}, false
}

// keepHome sees to a reset that keeps /home. It comes before a release is staged, whose
// trial would start on what is to go; and what takes the place of what is gone follows at
// once. One that was begun goes on in whatever system starts: no system may run on a part
// of what it had. A trial begins none: anyone who asks for one wants a system that stays.
func keepHome(s State, f Facts) (Step, bool) {
	switch {
	case s.Root != RootOpen:
		return Step{}, false
	case f.Came(KeepHome) == Failed && f.KeepHomeBegun:
		return Step{Recovery, "the reset that keeps /home is not complete: " + f.Cause}, true
	case f.Came(KeepHome) == Done && f.FirstStart && f.Came(CarryState) == NotTried:
		return Step{CarryState, "all but /home is deleted: this system starts as if for the first time"}, true
	case f.Came(KeepHome) != NotTried:
		return Step{}, false
	case f.KeepHomeBegun:
		return Step{KeepHome, "a reset that keeps /home was begun, and goes on"}, true
	case f.KeepHomeAsked && !s.Trial:
		return Step{KeepHome, "the running system has asked for a reset that keeps /home"}, true
	}
	return Step{}, false
}

// newSecret is for a boot that the TPM has opened, of a system that has proven itself: in
// any other there is something else to be asked first, and the request is gone. Anyone who
// declines gets the system that they have started.
func newSecret(f Facts) (Step, bool) {
	switch {
	case f.Came(NewSecret) == Done: // of a forgotten PIN, too, where somebody has typed the key
		return Step{Reboot, "the machine secret was replaced: the next start goes by the new one"}, true
	case f.SecretAsked && f.Came(Unlock) == Done && f.Came(NewSecret) == NotTried:
		return Step{NewSecret, "the running system has asked for a new machine secret"}, true
	}
	return Step{}, false
}

// upkeep is what only a blessed system does, before it is handed over to. None
// of it is worth a boot: what fails is reported, and tried again at the next.
func upkeep(f Facts) (Step, bool) {
	switch {
	case f.DBWritten:
		// Before anything else that writes the TPM's record.
		return Step{Reboot, "db has changed: kernels that start from now on go by it"}, true
	case f.Grown:
		return Step{Reboot, "the slots are larger: the kernel reads the new partition table at the next start"}, true
	case f.Verdict == Unfit && f.Came(Remember) == NotTried:
		return Step{Remember, "the system in the other slot has used up its tries and was never blessed"}, true
	case f.Verdict == Interrupted && f.Came(Remember) == NotTried && f.Came(RestoreState) == NotTried:
		return Step{Retry, "the trial of the other slot was cut off each time, and nothing says that it failed"}, true
	case f.ESPDiffers && f.Came(Mend) == NotTried:
		return Step{Mend, "the ESP is not as it was left"}, true
	case f.Policy && f.Came(UpdatePolicy) == NotTried:
		// Only now is it known which systems the ESP has.
		return Step{UpdatePolicy, "the set of systems that may unlock the root partition has changed"}, true
	case f.Manager && f.Came(UpdateManager) == NotTried:
		return Step{UpdateManager, "the release that runs has proven itself, and brought a boot manager"}, true
	case f.Stage && f.Came(Stage) == NotTried && f.Came(RestoreState) == NotTried:
		// Anyone who went back gets a start to look at it, with what was set aside at hand.
		return Step{Stage, "a fetched release waits to be activated"}, true
	case f.Came(Stage) == Done, f.Verdict == Interrupted && f.Came(Remember) == Done:
		return Step{Reboot, "the trial of the other slot begins"}, true
	case f.Updater && f.Came(SignUpdater) == NotTried:
		return Step{SignUpdater, "the program by which fwupd updates firmware is not signed by this machine yet"}, true
	case f.Modules && f.Came(TrustModules) == NotTried:
		return Step{TrustModules, "whose kernel modules are to be trusted is not settled"}, true
	case f.Revoke && f.Came(Revoke) == NotTried:
		// Last: from here to the restart no other step may write the record.
		return Step{Revoke, "the firmware would still start what was replaced, or what the release names"}, true
	case f.Grow && f.Came(GrowSlots) == NotTried && f.Came(RestoreState) == NotTried:
		return Step{GrowSlots, "the running system has asked for larger slots"}, true
	}
	return Step{}, false
}
