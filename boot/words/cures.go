package words

// What the recovery console says first: that the boot has stopped, and the ways on; the commands
// are named in backquotes. They are a line of the log each, in English, and are shown again in the
// language of the person there.
const (
	Stopped       = "the boot has stopped, and nothing was lost. `help` lists the commands; `exit` restarts the machine."
	StoppedLost   = "the boot has stopped. `help` lists the commands; `exit` restarts the machine."
	OnThisMachine = "On this machine, %s."

	CureResetKeys       = "Open the firmware's setup, clear its Secure Boot keys (Setup Mode), leave Secure Boot enabled, and start again: the machine makes itself new, and shows a new recovery key."
	CureResetOther      = "Another system may be installed instead: nothing on this disk is wanted any more."
	CureResetHalf       = "The keys to the data are overwritten, at least in part: most likely nothing opens it any more, with no recovery key."
	CureResetAgain      = "`reset` does all of it once more, and then the rest. If it fails again, the line above says at what: a disk that cannot be written is to be replaced."
	CureKeepHome        = "Each start goes on with it, and begins with what is left. `unlock`, with the recovery key, opens the root partition at /run/state; /home is whole, in bind/home there. If the line above says that the disk fails, copy it before anything else."
	CureKeepHomeGiveUp  = "To give it up, after `unlock`: `rm /run/state/halogen/keep-home`. The system then starts with what is not deleted yet."
	CureAsked           = "`slots` shows the two systems, and `rollback` starts the other one from now on."
	CureUnknown         = "`slots` shows the two systems, and `dmesg` what was said so far; `exit` starts again."
	CureNoDisk          = "Look whether the disk is attached and the firmware's setup lists it; detach a copy of it, or a stick with the same partitions. Then `exit`."
	CureDevices         = "`blkid` and `dmesg` show what the kernel has found."
	CureReadOnly        = "Nothing was written. Switch the disk's write protection off, if it has one. Many a worn-out SSD can only be read: then copy your data before anything else."
	CureReadOnlyUnlock  = "`unlock`, with the recovery key, opens the data to be read, at /run/state."
	CureForeignDisk     = "Nothing was written to the disk. If it is the right one, install the system on it again."
	CureTPMOff          = "Switch the TPM on in the firmware's setup, or switch the machine off and on when it was on. Then `exit`."
	CureTPMUnlock       = "Without it the data can still be reached here: `unlock`, with the recovery key."
	CureReplaced        = "This system was replaced by a newer one for good. `slots` shows the two systems, and `rollback` starts the other one, if there is one."
	CureVerify          = "`verify` says which slot is damaged, and where first."
	CureRepair          = "`repair` writes its bad blocks again, from the other slot as far as that holds the same; then `exit`."
	CureRollback        = "`rollback` starts the other system from now on, if it is whole."
	CureImage           = "If none of it helps, write the system image into its slot from the installation medium: the data is not touched."
	CureKeysGone        = "The firmware has lost its Secure Boot keys. If it was you who reset it: `exit`, and type the recovery key when the next start asks for it. That start then asks whether it shall give the firmware this machine's own keys again."
	CureKeysStranger    = "If it was not, somebody else had the machine in hand: do not type the recovery key before you know who."
	CureKeysOff         = "Switch Secure Boot on in the firmware's setup, with this machine's own keys, and start again. If the keys are gone, choose Setup Mode there, start again and type the recovery key: that start asks whether it shall give the firmware this machine's own keys again."
	CureEnroll          = "The line above says what stands in the way, and what to do in the firmware's setup. Then `exit`: the enrollment goes on where it stopped."
	CureHeader          = "Leave the disk as it is until you know what happened to it. A copy of the root partition's first 16 MiB, if there is one, puts it right."
	CureHeaderElsewhere = "What this system makes nothing of, the recovery key may still open: on another machine, with `cryptsetup open` of any Linux. Try that before anything that gives the data up."
	CureHeaderReset     = "If its data is lost or not wanted: `reset` makes the machine new, and keeps the system."
	CureForeign         = "Remove what was added: a command line that was typed at the boot manager is gone at the next start; files lie on the EFI system partition, " +
		"in loader/credentials, loader/addons and EFI/Linux/*.extra.d. Then `exit`."
	CureEventLog      = "`eventlog` says what differs from the last boot that the TPM opened."
	CurePIN           = "If the PIN is forgotten, or the TPM takes none for now: `exit`, press Enter where the PIN is asked for, and type the recovery key. That start lets you set another PIN."
	CureReseal        = "If you know what changed (a firmware update, new hardware): `unlock` with the recovery key, then `reseal`, then `exit`."
	CureGiveUp        = "Without the recovery key nothing opens the data. `reset` gives it up, and makes the machine new."
	CureRestore       = "Each start goes on with it, of either system. On a full disk: `unlock`, delete files below /run/state that nobody needs (not in /run/state/snapshots), then `exit`."
	CureRestoreCancel = "Where nothing has changed yet, `ota rollback --state --cancel` after `unlock` takes the request back, and `ota rollback --state --forget` deletes the snapshot: what it keeps takes its room even where the file is deleted. Leave /run/state/snapshots as it is: it has the only copy of what was taken out of its place."
	CureExtensions    = "`rollback` starts the other system from now on, with extensions of its own, if it is whole."
	CureExtensionsOff = "To start without any: `unlock`, with the recovery key, then `rm /run/state/halogen/shared/extensions/enabled.json`, then `exit`. The running system fetches what is missing again: `ota extension enable`."
	CureMounts        = "`unlock` opens the root partition at /run/state: what the line above names is there, and so are your files."
	CureMountsOther   = "`rollback` starts the other system from now on, if it is this one's settings that do not fit."
	CureDiskFails     = "The disk fails to read. Copy your files before anything else: `unlock`, with the recovery key, opens what can be read at /run/state. `dmesg` says which sectors are bad."
	CureDiskReplace   = "Then replace the disk: install the system on the new one, and put your files back. A file system that only lost a few blocks can be repaired from another system, once there is a copy."
	// CureTPMDead is how the owner of a machine goes on whose system requires a TPM, when that
	// has died. An update never makes it do without one.
	CureTPMDead = "If the TPM has died there are two ways to go on with your data. Either put in a TPM that works (which may mean another mainboard): started with it, this system asks for the recovery key, and binds itself to the new TPM. " +
		"Or install an image that its maker has built with TPM=optional, and keep the root partition (`halogen install --keep-root`): it starts by the recovery key, without a TPM."
)
