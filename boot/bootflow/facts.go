package bootflow

import (
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
	TableComplete               // ours, all six partitions, or what is left of them in a machine that was in use
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
	RootAbsent     Root = iota // there is none: the entry of the partition table was lost
	RootBlank                  // never made
	RootUnfinished             // begun by a provisioning that was cut
	RootLocked                 // made, and closed
	RootOpen                   // opened in this boot
	RootDamaged                // was made, and its header is gone or not ours
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
	// only the PIN is wanting, which is not a failure of the system's.
	Answered bool
	// Released: a secret of this machine is or was in memory in this boot. The TPM
	// has released it, somebody has typed it, or it was made. No shell may follow.
	Released bool

	// Outcomes is what came of the steps that this boot has tried.
	Outcomes Outcomes
	// PIN: the TPM asks for one, which somebody has to type. What came of that is Unlock's outcome.
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

	// Extensions: this machine has enabled some of the release's, or which are is not known.
	Extensions bool

	// EnrollAgain: the owner, who has opened the root partition with the recovery
	// key, wants the firmware to get the keys that lie on it.
	EnrollAgain bool

	// Others: the installer has left the owner's wish that other systems go on starting, and
	// this machine has no keys of its own yet.
	Others bool

	// ModuleKey: the release wants a certificate of kernel modules in db, and this machine has no
	// keys of its own yet.
	ModuleKey bool
	// DBWritten: TrustModules has changed db, which a kernel reads when it starts.
	DBWritten bool

	// Grown: the partition table has larger slots, which the kernel reads at the next start.
	Grown bool
	// RootLost is why the root partition, which was closed to be made smaller, does not open
	// again; "" where it is open, or was not closed.
	RootLost string

	Asked  // of this boot, by the running system or the boot before
	Upkeep // that a blessed system has to see to
}

// Asked is what the running system has asked of this boot, or a boot before has begun.
type Asked struct {
	// StateAsked: directories are to go back to what they held before an update, or a boot
	// was cut while it exchanged them.
	StateAsked bool

	// SecretAsked: the running system has asked for a new machine secret.
	SecretAsked bool

	// KeyNoted: the note of the recovery key says that a new one is to be made and shown, or
	// that a cut has left two.
	KeyNoted bool

	// PhraseNoted: the running system has asked for another phrase, or the machine has one that
	// nobody has seen yet.
	PhraseNoted bool

	// ResetAsked: the running system has asked for a factory reset.
	ResetAsked bool
	// ResetBegun: where Reset failed, somebody has confirmed it, and the first write was
	// tried. What opens the data may be gone.
	ResetBegun bool

	// KeepHomeAsked: the running system has asked for a reset that keeps /home.
	KeepHomeAsked bool
	// KeepHomeBegun: somebody has confirmed one, which is not complete.
	KeepHomeBegun bool
}

// Upkeep is what a blessed system has to see to.
type Upkeep struct {
	// Policy: the TPM's record is not the one that the machine's systems call
	// for.
	Policy bool
	// Stage: the fetcher left a release to be staged.
	Stage bool
	// Verdict is about a system in the other slot whose tries are used up.
	Verdict Verdict
	// Manager: the running release brought a boot manager that is not in place yet.
	Manager bool
	// Revoke: a boot manager of this machine's own was replaced, and its firmware
	// would still start it; or the running release names what shall not start.
	Revoke bool
	// Modules: the owner is to be asked about the running release's certificate of kernel
	// modules, or db is to get or to lose one.
	Modules bool
	// Updater: the running system's program by which fwupd updates firmware is another
	// than this machine's key has signed.
	Updater bool
	// Grow: the running system has asked for larger slots.
	Grow bool
	// ESPDiffers: the ESP and the root partition's copies of it differ.
	ESPDiffers bool
}

// A Verdict is what is held of a trial that has used up its tries.
type Verdict int

// Verdicts.
const (
	NoTrial     Verdict = iota // none has, or it was judged before
	Unfit                      // it failed: the version is not taken again
	Interrupted                // it was cut off, and nothing says that it failed
)
