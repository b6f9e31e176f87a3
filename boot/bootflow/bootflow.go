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

// State is what the machine keeps, read from where it lives: the partition
// table, the ESP, the LUKS2 header and the TPM. There is no second copy.
type State struct {
	Table Table
	// Booted is the slot whose system partition's UUID spells the root hash of
	// the running UKI; none when no partition does.
	Booted layout.Slot
	// TreeNamed: the booted slot's verity partition spells it as well, so its
	// tree is complete.
	TreeNamed bool
	// Trial: the running UKI's name carries counters.
	Trial bool
	// Fallback: another UKI on the ESP is one the boot manager would start.
	Fallback bool
	Keys     Keys
	Root     Root
	// Floor is the lowest epoch that the TPM releases keys to.
	Floor uint64
}

// Table is the condition of the partition table.
type Table int

// Conditions of the partition table.
const (
	TableUnknown   Table = iota // no disk was found
	TableForeign                // partitions where none should be, or no room
	TableNew                    // the ESP and the first system partition, as an installation leaves them
	TableDamaged                // ours, with one copy to be restored
	TableComplete               // ours, all six partitions
	TableInstaller              // an installer stick's
	TableReadOnly               // of a disk that can be read and not written
)

// Keys is how far this machine's Secure Boot keys have come.
type Keys int

// Conditions of the Secure Boot keys.
const (
	KeysUnneeded Keys = iota // optional, and the firmware is not in Setup Mode
	KeysMissing              // Setup Mode: nothing is enrolled
	KeysEnrolled             // the firmware enforces exactly our keys
	KeysForeign              // the firmware enforces, or could enforce, something else
	KeysOff                  // our keys are there, and Secure Boot is switched off
	KeysFinished             // enrolled in this boot: they count from the next one
)

// Root is the condition of the root partition.
type Root int

// Conditions of the root partition.
const (
	RootAbsent     Root = iota // there is none (or there cannot be one)
	RootBlank                  // never made
	RootUnfinished             // begun by a provisioning that was cut
	RootLocked                 // made, and closed
	RootOpen                   // opened in this boot
	RootDamaged                // was made, and its header is gone or not ours
)

// An Outcome is what came of a step that can fail.
type Outcome int

// Outcomes.
const (
	NotTried Outcome = iota
	Done
	Failed
)

// CannotRead are the words in a Cause where DiskFails. Of a boot before, a Cause is all that
// is known.
const CannotRead = "the disk fails to read what is on the root partition"

// Facts is what this boot has seen and done.
type Facts struct {
	Epoch      uint64               // of the running UKI
	SecureBoot contract.Requirement // what the boot contract wants
	TPM        contract.Requirement
	TPMPresent bool
	// TPMFault is why a TPM that is there cannot be used; "" where there is none.
	TPMFault string

	// Planted is what somebody has stored in the firmware for the kernel to obey, and
	// PlantedGone that it is deleted, for the first time: the kernel of this boot has
	// obeyed it, and that of the next one does not.
	Planted     string
	PlantedGone bool

	// Problem is why the boot cannot even begin: no disk, two disks, a
	// contract that does not fit. It is meant for the person at the console.
	Problem string
	// ConsoleAsked: somebody at the machine asked for the recovery console.
	ConsoleAsked bool
	// Noted is why the boot before this one wants the recovery console to be
	// opened in this one, before anything is unsealed; "" when it does not.
	Noted string
	// Answered: somebody was at the prompt for the recovery key, and wants the console; or
	// only the PIN is wanting, which is no failure of the system's.
	Answered bool
	// Released: a secret of this machine is or was in memory in this boot. The TPM
	// has released it, somebody has typed it, or it was made. No shell may follow.
	Released bool

	Install Outcome // on another disk, by the stick that was started
	Healed  Outcome // the partition table's restoration
	Enroll  Outcome // the Secure Boot keys
	Verity  Outcome // dm-verity, the first read through it, and the image's mount
	Unlock  Outcome // the root partition, by the TPM
	Key     Outcome // the root partition, by the recovery key
	Record  Outcome // the TPM's policy, brought up to date
	Carried Outcome // this system's own copy of what may change, at its first start
	Mount   Outcome // state.conf's directories
	// PIN: the TPM asks for one, which somebody has to type. Unlock says what came of it.
	PIN bool
	// DiskFails: the disk does not read what the file system of the root partition
	// needs, which was open.
	DiskFails bool
	// Cause is the error of the outcome that failed last.
	Cause string

	// Replaced: the TPM's record names systems, and the running one is none of
	// them. It was replaced, and somebody has brought it back.
	Replaced bool

	// Foreign: something from outside the UKI was added to this boot.
	Foreign bool

	// RootMade: the root partition was made in this boot.
	RootMade bool

	// FirstStart: the root partition has nothing of this system's own yet.
	FirstStart bool
	// Unsettled: the running system is blessed, and what the root partition says of
	// whose state counts is older; or a trial in the other slot has state of its own.
	Unsettled bool
	Settled   Outcome

	// StateAsked: directories are to go back to what they held before an update, or a boot
	// was cut while it exchanged them.
	StateAsked bool
	Restored   Outcome

	// SecretAsked: the running system has asked for a new machine secret.
	SecretAsked bool
	NewSecret   Outcome

	// KeyNoted: the note of the recovery key says that a new one is to be made and shown, or
	// that a cut has left two.
	KeyNoted bool
	NewKey   Outcome

	// ResetAsked: the running system has asked for a factory reset.
	ResetAsked bool
	Reset      Outcome // the root partition is wiped; or nobody has confirmed it
	// ResetBegun: where Reset failed, somebody has confirmed it, and the first write was
	// tried. What opens the data may be gone.
	ResetBegun bool

	// KeepHomeAsked: the running system has asked for a reset that keeps /home.
	KeepHomeAsked bool
	// KeepHomeBegun: somebody has confirmed one, which is not complete.
	KeepHomeBegun bool
	KeepHome      Outcome // all but /home is deleted; or nobody has confirmed it

	// EnrollAgain: the owner, who has opened the root partition with the recovery
	// key, wants the firmware to get the keys that lie on it.
	EnrollAgain bool

	// Policy: the TPM's record is not the one that the machine's systems call
	// for. Record says what came of it.
	Policy bool
	// Stage: the fetcher left a release to be staged.
	Stage  bool
	Staged Outcome
	// Verdict is about a system in the other slot whose tries are used up.
	Verdict Verdict
	Judged  Outcome
	// Manager: the running release brought a boot manager that is not in place yet.
	Manager bool
	Managed Outcome
	// Revoke: a boot manager of this machine's own was replaced, and its firmware
	// would still start it; or the running release names what shall not start.
	Revoke  bool
	Revoked Outcome
	// Updater: the running system's program by which fwupd updates firmware is another
	// than this machine's key has signed.
	Updater       bool
	UpdaterSigned Outcome
	// ESPDiffers: the ESP and the root partition's copies of it differ.
	ESPDiffers bool
	Mended     Outcome
}

// A Verdict is what is held of a trial that has used up its tries.
type Verdict int

// Verdicts.
const (
	NoTrial     Verdict = iota // none has, or it was judged before
	Unfit                      // it failed: the version is not taken again
	Interrupted                // it was cut off, and nothing says that it failed
)

// Kind is what a step does.
type Kind int

// The closed set of steps.
const (
	Recovery      Kind = iota // open the recovery console
	Install                   // let a person install the release on another disk
	Heal                      // restore the damaged copy of the partition table
	Partition                 // make the partitions that are missing
	MakeTree                  // generate the first slot's verity tree and name the slot
	OpenVerity                // verify the system image and mount it
	Enroll                    // make, sign with and enroll this machine's keys
	MakeRoot                  // make the root partition and seal its key
	Unlock                    // open the root partition with the TPM
	AskPIN                    // open it with the TPM and a PIN that somebody types
	AskKey                    // open the root partition with a key that somebody types
	NewSecret                 // make a new machine secret, if somebody types the recovery key
	NewKey                    // make a new recovery key, if somebody wants to see it
	Reset                     // wipe the root partition, if somebody types the machine's name
	KeepHome                  // delete all but /home from the root partition, if somebody types the machine's name
	RestoreState              // put directories back as they were before an update
	Remember                  // note that a version failed its trial
	Retry                     // give a trial that was only interrupted its tries again
	Mend                      // make the ESP whole from the root partition's copies, or those from it
	Stage                     // activate a fetched release
	UpdatePolicy              // write the TPM's policy
	UpdateManager             // put the blessed release's boot manager in the place of an older one
	Revoke                    // have the firmware refuse a boot manager that was replaced, or what the release names
	SignUpdater               // sign the program by which fwupd updates firmware
	CarryState                // make this system's own /etc from that of the one before
	SettleState               // note whose /etc counts, and remove that of a trial that was not blessed
	MountState                // mount the root partition's directories
	Condemn                   // take the slot's tries away
	Reboot                    // start again
	SwitchRoot                // hand over to the system
	RecoverNext               // have the next boot open the recovery console, and start again
)

var kindNames = [...]string{
	Recovery: "recovery", Install: "install", Heal: "heal", Partition: "partition", MakeTree: "make-tree", OpenVerity: "open-verity",
	Enroll: "enroll", MakeRoot: "make-root", Unlock: "unlock", AskPIN: "ask-pin", AskKey: "ask-key", NewSecret: "new-secret", NewKey: "new-key",
	Reset: "reset", KeepHome: "keep-home", RestoreState: "restore-state", Remember: "remember", Retry: "retry", Mend: "mend", Stage: "stage", UpdatePolicy: "update-policy", UpdateManager: "boot-manager", Revoke: "revoke", SignUpdater: "sign-updater",
	CarryState: "carry-state", SettleState: "settle-state", MountState: "mount-state", Condemn: "condemn", Reboot: "reboot", SwitchRoot: "switch-root", RecoverNext: "recover-next",
}

// String returns the step's name as the journal has it.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("step-%d", int(k))
	}
	return kindNames[k]
}

// MarshalText writes the step's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

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
	case s.Trial && s.Fallback && !f.ConsoleAsked && !f.Answered && (f.Released || f.Key == Failed && f.Unlock == Failed):
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
	case f.Reset == Done:
		return Step{Recovery, "the root partition is wiped, as was asked for: clear the Secure Boot keys in the firmware's setup, leave Secure Boot enabled, and start again"}, true
	case f.Reset == Failed && f.ResetBegun:
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
		switch f.Install {
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
		if f.Healed == NotTried {
			return Step{Heal, "one copy of the partition table is damaged; the other is good"}, true
		}
		// A table that cannot be written back is no reason not to boot.
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
	case f.Verity == Failed:
		return condemn(s, "the system image is not what the UKI names: "+f.Cause), true
	case s.Booted.Valid() && s.TreeNamed && f.Verity == NotTried:
		return Step{OpenVerity, "slot " + s.Booted.String() + " holds the content that the UKI names"}, true
	case f.Verity == Done:
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
	switch s.Keys {
	case KeysFinished:
		return Step{Reboot, "this machine's Secure Boot keys are enrolled: they are enforced from the next start on"}, true
	case KeysMissing:
		switch {
		case f.Enroll == Failed && f.EnrollAgain:
			return Step{}, false // the root partition is open, and the firmware starts the system
		case f.Enroll == Failed && f.SecureBoot == contract.Required:
			return Step{Recovery, "this machine's Secure Boot keys were not enrolled: " + f.Cause}, true
		case f.Enroll == Failed:
			return Step{}, false
		case provisioned(s) && !f.RootMade && !f.EnrollAgain:
			// The firmware lost its keys, or somebody took them away. Enrolling
			// again by itself would help whoever did it: the TPM decides, or else
			// the owner.
			return Step{}, false
		case !f.TPMPresent && s.Root != RootOpen:
			// Without a TPM the keys have no safe place but the root partition.
			return Step{}, false
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
		case f.ResetAsked && f.Reset == NotTried && f.Unlock == NotTried:
			// Before anything is unsealed: a console may follow.
			return Step{Reset, "the running system has asked for a factory reset"}, true
		case f.Key == Failed:
			return Step{Recovery, "the root partition was not opened: " + f.Cause}, true
		case f.Unlock == Failed && f.Replaced && s.Fallback:
			return Step{Condemn, "the TPM releases no key to this system, since another one has replaced it"}, true
		case f.Unlock == Failed && f.DiskFails:
			return Step{Recovery, "the TPM has opened the root partition, and its file system cannot be read: " + f.Cause}, true
		case f.Unlock == Failed:
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
	case f.Mount == Failed:
		// The system image is open and good: this is not the slot's fault.
		return Step{Recovery, "the directories that may change could not be mounted: " + f.Cause}, true
	case f.Carried == Failed:
		return Step{Recovery, "what may change could not be carried over to this system: " + f.Cause}, true
	case f.KeepHomeBegun && f.KeepHome != Done:
		// It deletes what would go back, and the request, which may be what is stuck.
		if step, ok := keepHome(s, f); ok {
			return step, true
		}
	}
	switch {
	case f.Restored == Failed:
		return Step{Recovery, "the directories that were to be as before an update are not: " + f.Cause}, true
	case s.Root == RootOpen && f.StateAsked && f.Restored == NotTried:
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
		if f.KeyNoted && f.NewKey == NotTried && f.Unlock == Done {
			return Step{NewKey, "the recovery key was not confirmed, or the running system has asked for a new one"}, true
		}
		if step, ok := upkeep(f); ok {
			return step, true
		}
	}
	if step, ok := state(s, f); ok {
		return step, true
	}
	if f.Mount == NotTried {
		return Step{MountState, "the system image is open"}, true
	}
	return Step{}, false
}

// state sees to whose state this boot runs on. It comes after upkeep: a boot that
// restarts into a trial leaves the trial's as it is, since nothing has changed.
func state(s State, f Facts) (Step, bool) {
	switch {
	case s.Root != RootOpen:
		return Step{}, false
	case f.FirstStart && f.Carried == NotTried:
		return Step{CarryState, "this system starts for the first time"}, true
	case f.Unsettled && f.Settled == NotTried && !s.Trial:
		return Step{SettleState, "this system has proven itself: its state counts"}, true
	}
	return Step{}, false
}

// keepHome sees to a reset that keeps /home. It comes before a release is staged, whose
// trial would start on what is to go; and what takes the place of what is gone follows at
// once. One that was begun goes on in whatever system starts: no system may run on a part
// of what it had. A trial begins none: whoever asks for one wants a system that stays.
func keepHome(s State, f Facts) (Step, bool) {
	switch {
	case s.Root != RootOpen:
		return Step{}, false
	case f.KeepHome == Failed && f.KeepHomeBegun:
		return Step{Recovery, "the reset that keeps /home is not complete: " + f.Cause}, true
	case f.KeepHome == Done && f.FirstStart && f.Carried == NotTried:
		return Step{CarryState, "all but /home is deleted: this system starts as if for the first time"}, true
	case f.KeepHome != NotTried:
		return Step{}, false
	case f.KeepHomeBegun:
		return Step{KeepHome, "a reset that keeps /home was begun, and goes on"}, true
	case f.KeepHomeAsked && !s.Trial:
		return Step{KeepHome, "the running system has asked for a reset that keeps /home"}, true
	}
	return Step{}, false
}

// newSecret is for a boot that the TPM has opened, of a system that has proven itself: in
// any other there is something else to be asked first, and the request is gone. Whoever
// declines gets the system that they have started.
func newSecret(f Facts) (Step, bool) {
	switch {
	case f.NewSecret == Done: // of a forgotten PIN, too, where somebody has typed the key
		return Step{Reboot, "the machine secret was replaced: the next start goes by the new one"}, true
	case f.SecretAsked && f.Unlock == Done && f.NewSecret == NotTried:
		return Step{NewSecret, "the running system has asked for a new machine secret"}, true
	}
	return Step{}, false
}

// upkeep is what only a blessed system does, before it is handed over to. None
// of it is worth a boot: what fails is reported, and tried again at the next.
func upkeep(f Facts) (Step, bool) {
	switch {
	case f.Verdict == Unfit && f.Judged == NotTried:
		return Step{Remember, "the system in the other slot has used up its tries and was never blessed"}, true
	case f.Verdict == Interrupted && f.Judged == NotTried && f.Restored == NotTried:
		return Step{Retry, "the trial of the other slot was cut off each time, and nothing says that it failed"}, true
	case f.ESPDiffers && f.Mended == NotTried:
		return Step{Mend, "the ESP is not as it was left"}, true
	case f.Policy && f.Record == NotTried:
		// Only now is it known which systems the ESP has.
		return Step{UpdatePolicy, "the set of systems that may unlock the root partition has changed"}, true
	case f.Manager && f.Managed == NotTried:
		return Step{UpdateManager, "the release that runs has proven itself, and brought a boot manager"}, true
	case f.Stage && f.Staged == NotTried && f.Restored == NotTried:
		// Whoever went back gets a start to look at it, with what was set aside at hand.
		return Step{Stage, "a fetched release waits to be activated"}, true
	case f.Staged == Done, f.Verdict == Interrupted && f.Judged == Done:
		return Step{Reboot, "the trial of the other slot begins"}, true
	case f.Updater && f.UpdaterSigned == NotTried:
		return Step{SignUpdater, "the program by which fwupd updates firmware is not signed by this machine yet"}, true
	case f.Revoke && f.Revoked == NotTried:
		// Last: from here to the restart no other step may write the record.
		return Step{Revoke, "the firmware would still start what was replaced, or what the release names"}, true
	}
	return Step{}, false
}
