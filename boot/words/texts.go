package words

// What is said about a question.
const (
	YesOrNo    = " [y/N] "
	YesKey     = "y" // which counts in every language, beside its own
	AnsweredOn = "(answered on %s)\n"
	PressEnter = "Press Enter to go on (or wait two minutes). "
	TryAgain   = "%v. Nothing is lost: try again.\n"
	Because    = "%s: %v\n"
)

// A recovery key that is being typed.
const (
	WrongGroup      = "WRONG: group %s"
	LettersTooMany  = "%d letters too many"
	LettersTyped    = "%d of %d letters"
	OfKeyboard      = "%s keyboard"
	TabShows        = "Tab shows them"
	TabHides        = "Tab hides them"
	ForeignLetter   = "letter %d is none that a recovery key has (%s)"
	LetterCount     = "the recovery key has %d letters, and %d were typed"
	NotTheKey       = "this is not the recovery key of this machine's root partition, or a letter is wrong%s (%w)"
	LookAtGroup     = ": look at group %d"
	LookAtGroups    = ": look at groups %s"
	WrongPassphrase = "wrong passphrase"
)

// The pad of letters, for a machine without keys.
const (
	PadErase    = "erase"
	PadClear    = "clear"
	PadShow     = "hide/show"
	PadDone     = "done"
	PadSpace    = "space"
	PadHelp     = "Arrow or volume keys move, Enter or power chooses; or touch it."
	PadHelpLine = "Volume keys move, power chooses; or touch it." // where arrow keys do not move it
)

// The keyboard.
const (
	// Keymap is said of a keyboard that somebody has named, and before a PIN of every one, since
	// what it types cannot be seen where it is hidden.
	Keymap = "\nThe keyboard is taken for: %s. (`keymap` at the recovery console names another one.)\n"
	// OtherKeys is said before a new PIN where another keymap is in force.
	OtherKeys = `The PIN is what these keys type now. A release that knows no keymaps, such as
one that this machine may go back to, takes them for those of a US keyboard: use
characters that both have on the same keys, or name another keymap first.
`
)

// The phrase, before a question. The line below the words says what they mean.
const (
	PhraseIs = `
This machine's phrase:  %s
Other words, or none: it is not this machine's system that asks. Type nothing.
`
	PhraseFirst = `
This machine's phrase:  %s
It shows that before it asks for a secret. Other words, or none, mean that
something else asks: then type nothing.
`
	PhraseOnScreen = "\nThis machine's phrase is on its screen, and not on this line, which others may record.\n"
	PhraseNotShown = `
This machine cannot show its phrase: %s.
Type nothing, unless you know what has changed (firmware, keys, disk).
`
	PhraseNone = `
This machine has no phrase yet. It makes one as soon as a system that is not on
trial has opened the disk, and shows it then, if the disk's header has room for
it. If it has shown you one before: type nothing.
`
	PhraseUnable = `
This machine's TPM cannot keep a phrase: it lacks the command PolicyCommandCode.
If it has shown you one before: type nothing.
`
	PhraseNoTPM = "\nThis machine has no TPM, and so no phrase to show.\n"

	PhraseTPMGone = "its TPM is gone"
	PhraseNewer   = "it is of a later release"
	PhraseDamaged = "what the disk has of it is damaged"
	PhraseOther   = "the TPM does not give it to what was started"
	PhraseRefused = "the TPM does not give it"
)

// A phrase that was made, or exchanged.
const (
	PhraseWanted = `
A NEW PHRASE: this was asked for from the running system, with ` + "`halogenctl phrase new`" + `.
If it was not you who asked, press Enter: somebody else may be root there. Anything but
y, and two minutes without an answer, leaves the phrase as it is.
Make a new one, and show it here?`
	PhraseFresh = `
This machine's NEW PHRASE:

    %s

It is shown before the machine asks for a secret. Other words, or none, mean that
something else asks.
`
	PhraseFirstOne = `
This machine has a phrase now. If it has shown you one before, somebody has
taken that away, and has had this machine, or its disk, in hand.
`
	PhraseLost = `
THE PHRASE OF BEFORE IS LOST, AND THIS MACHINE HAS ANOTHER ONE. A release that
knows no phrases has made a new machine secret, or somebody has changed the
disk. If no such release has run, somebody has had this machine in hand.
`
	PhraseExchanged = `
THIS DISK'S HEADER HAD ANOTHER PHRASE. It was exchanged, put back, or damaged: a
prompt of this start, or of one before, may have shown that one, or none. If you
do not know why, somebody has had this machine, or its disk, in hand.
`
	PhraseStays = `
This machine's phrase:  %s
It is what it was.
`
	PhraseNotThis = `
THE DISK'S HEADER HAD A PHRASE THAT IS NOT THIS MACHINE'S, OR NOT ITS LAST ONE:
it was exchanged, put back, or damaged. The machine keeps the phrase that it had.
If you do not know why, somebody has had this machine, or its disk, in hand.
`
	PhraseElsewhere = "\nIt is shown on the screen of this machine, and not on this line, which others may record.\n"
	PhraseSeen      = "Press Enter when you have seen it (or wait 15 seconds). "
	PhraseSeenPIN   = "Press Enter when you have seen it (or wait two minutes). "
	PhraseKnown     = "Do you know it by heart? Anything but y leaves the phrase as it was."
	PhraseKept      = "The phrase stays as it is.\n"
	PhraseKeptFor   = "the phrase stays as it is: %v\n"
	PhraseCounts    = "The new phrase counts from now on.\n"
)

// The recovery key, shown and confirmed.
const (
	KeyName        = "RECOVERY KEY"
	KeyNameNew     = "NEW RECOVERY KEY"
	KeyTitle       = "\nThis machine's %s:\n\n    "
	KeyWritten     = "Press Enter when you have written it down%s. "
	KeyWaitMinute  = " (or wait a minute)"
	KeyWaitMinutes = " (or wait %d minutes)"
	KeyGroups      = "Type group %d and group %d of it, from what you have written down\n(an empty line: %s): "
	KeyGroupsWrong = "That is not what the key has in groups %d and %d. Here it is again:\n"
	KeyLater       = "later"
	KeyBeforeStays = "the one before stays"
	KeyElsewhere   = "\nIt is shown on the screen of this machine, and not on this line, which others may\nrecord. The command recovery-key of the recovery console makes and shows another one.\n"
	// KeyKeep is what the machine cannot do for its owner.
	KeyKeep = `Write it down and keep it away from this machine. It is shown this once. It opens
your data when the TPM does not: after a firmware update, with a new mainboard.
Set a password in the firmware's setup. Without one, somebody with the machine
in hand can switch Secure Boot off. That opens nothing, since the TPM then keeps
the key; but a system could start that looks like yours and asks for what you
type.
`
)

// A new recovery key.
const (
	KeyOffered = `
NOBODY HAS SHOWN TO HAVE WRITTEN THIS MACHINE'S RECOVERY KEY DOWN. Without it all data
is lost when the TPM does not open the machine: after a firmware update, with a new
mainboard. Anything but y, and 15 seconds without an answer, leaves it as it is.
Make a new one, and show it here?`
	KeyWanted = `
A NEW RECOVERY KEY: this was asked for from the running system, with
` + "`halogenctl recovery-key new`" + `. The one that you have opens until the new one is confirmed.
If it was not you who asked, press Enter: somebody else may be root there. Anything but
y, and two minutes without an answer, leaves the key as it is.
Make a new one, and show it here?`
	KeyVoid = `
THE RECOVERY KEY THAT WAS SHOWN LAST IS NOT IN FORCE: it was not confirmed, and opens
nothing. Throw away what you have written down of it. The one before opens, as it did.
If nobody has that one, ask again: ` + "`halogenctl recovery-key new`" + `, and restart.
Press Enter to go on (or wait two minutes). `
	KeysSeveral   = "\nThis machine has %d recovery keys: each opens it, until a new one is confirmed, which is then the only one.\n"
	KeyUnchanged  = "The recovery key stays as it is.\n"
	KeyConfirmed  = "The new recovery key is confirmed. The one before opens nothing any more.\n"
	KeyNotInForce = "the new recovery key was confirmed and cannot be put in force: the one before stays: %w"
)

// The recovery key, asked for.
const (
	AskKey       = "\nRecovery key (an empty line opens the recovery console): "
	AskKeySecret = "\nRecovery key for the new secret (an empty line changes nothing): "
	OnTrial      = "\nThis system is on trial. If nobody answers within %d minutes the machine restarts, and goes back to the system before it once the tries are used up.\n"
	AskAccept    = "Accept this machine as it is now, so that it opens by itself from the next start on?\n" +
		"Say yes only if you know what changed it (a firmware update, new hardware)."
	Accepted          = "Accepted.\n"
	Bound             = "Bound to this TPM.\n"
	AcceptedInPart    = "the TPM has accepted this machine, but not all that goes with it was written (the next start may ask for the recovery key again)"
	FirmwareUnchanged = "the firmware's keys were left as they are: %v\n"
	TPMUnchanged      = "the TPM was left as it is: %v\n"
	KeyOnceMore       = "The recovery key will be asked for once more at the next start: %v.\n"
)

// The PIN.
const (
	AskPIN       = "\nPIN (one letter alone: it is forgotten, the recovery key opens): "
	WrongPIN     = "This is not the PIN.%s\n"
	ThreeWrong   = "\nThree wrong PINs. Type y to go on, or another letter alone to type the recovery key: "
	TriedBefore  = "\nWrong PINs were typed before, or the power was cut.%s.\n"
	TriedCount   = "\nThe TPM has counted %d wrong PINs, power cuts among them, since the last ones were forgotten.\n"
	TriesNone    = " The TPM takes none for now, not even the right one: leave the machine switched on for %s, and start it again then, or type the recovery key"
	TriesLeft    = " %d more wrong ones, and the TPM takes none for %s."
	AWhile       = "a while"
	InSeconds    = "%d seconds"
	InMinutes    = "%d minutes"
	PINUncounted = "%v.\nWithout that the PIN has to be longer: somebody else may let them be tried without end.\n"
	AskNewPIN    = "New PIN or passphrase, %d characters at least (an empty line changes nothing): "
	OnceMore     = "Once more: "
	PINShort     = "That is too short: %d characters at least. Nothing is changed yet: try again.\n"
	PINsDiffer   = "These are two different ones. Nothing is changed yet: try again.\n"
	PINTryAgain  = "%v. Nothing is changed yet: try again.\n"
	PINLength    = "a PIN or passphrase has %d to %d characters"
	OfferPIN     = "Set a new PIN?"
	PINUnchanged = "the PIN was left as it is: %v\n"
	PINGoesOn    = "The next start finishes the new PIN or takes it back: %v\n"
	PINSet       = "The PIN is set: this machine asks for it from now on.\n"
	PINRemoved   = "The PIN is removed: this machine starts by itself from now on.\n"
)

// A new machine secret, which the running system has asked for.
const (
	SecretAsked = `
%s: this was asked for from the running system,
with ` + "`halogenctl %s`" + `. If it was not you who did, press Enter: somebody
else may be root there. Then nothing is changed, and the machine starts as usual.
If it was you, type the recovery key. It stays the same, and keeps the new secret, too.
`
	WishPIN        = "A NEW PIN"
	WishNoPIN      = "NO PIN ANY MORE"
	WishSecret     = "A NEW MACHINE SECRET"
	WishKeys       = "A NEW MACHINE SECRET AND NEW SECURE BOOT KEYS"
	WishRefused    = "\n%s, which was asked for with `halogenctl %s`: nothing was changed"
	NothingChanged = "Nothing was changed"
	SecretGoesOn   = "It is not finished, and the next start finishes it or takes it back: until then what is to be replaced may still open this machine"
	SecretMade     = "The machine has a new secret.\n"

	TwoKeys        = "this machine has not exactly one recovery key: use `recovery-key` first"
	KeysUnfinished = "the Secure Boot keys are being replaced"
	NoOwnKeys      = "this machine has no Secure Boot keys of its own that its firmware enforces"
	HasNoPIN       = "this machine has no PIN"
	PINNeedsTPM    = "a PIN needs a TPM, and this machine's data is bound to none"
	PINNeedsRoom   = "this machine's TPM has no room for the list of systems that may open its data, so that a copy of this disk's header from before would open without the PIN"
)

// The firmware's Secure Boot keys.
const (
	GiveKeys = "The firmware has no Secure Boot keys: it is in Setup Mode. Give it this machine's own again?\n" +
		"Say yes only if you have installed this system again, or cleared the keys yourself%s."
	MakeKeys = "The firmware has no Secure Boot keys: it is in Setup Mode, and this machine has none of its own. Make them, and give them to the firmware?\n" +
		"Say yes only if you have cleared the firmware's keys yourself%s."
	OrPowerCut     = ", or if the power was cut while this machine was set up"
	ManagerRefused = "The boot manager that has started this machine is in dbx: a newer one takes its place. If the TPM does not know how that starts, the recovery key is asked for once more.\n"
	LetROM         = "The option ROM of %s (hash %x) is not among those that this machine lets start. Let it start from now on?\n" +
		"Say yes only if you have put in this card, or updated its firmware."
)

// The certificates of other systems. What letting others start costs, and what it does not, the
// installer says as well.
const (
	OthersAsk    = "\nShall other systems, such as Windows, go on starting on this machine with Secure Boot on?\nThen the firmware's db also gets:\n"
	OthersWeaken = "Any program that Microsoft has signed then starts on this machine before this system does, from a stick as well."
	OthersSpare  = "Where a TPM tells what was started (PCR 4 and 7), your data stays closed to it: it is opened for this machine's own boot manager and system alone."
	OthersNoTPM  = "This machine has no TPM: such a program can look like this system, and ask for the recovery key."
	OthersChosen = "Say yes only if you have chosen this when you installed the system."
)

// The key of kernel modules that is not built into the kernel.
const (
	ModulesAsk = "\nThis release has kernel modules, such as drivers, that are signed by another key than the kernel's own:\n  %s\n  SHA-256 %x\n" +
		"Shall this machine trust that key?\n"
	ModulesRun    = "Anything that it signs can then run in the kernel of this machine, and there it can do everything, your data included."
	ModulesStart  = "The key gets into the firmware's db, which is for both: the firmware also starts programs that it has signed, before this system."
	ModulesChosen = "With no, all but these modules works. Say yes only if you need them and trust those who have that key."
)

// Less than the machine had.
const (
	Weaker        = "nothing was changed: this machine would be protected less than it was"
	WeakerWarning = "\nWARNING: from now on this machine would be protected less than it was.\n\n"
	WeakerAsk     = "\nSomebody who had this machine in hand may want exactly that. If you do not know why,\n" +
		"press Enter: the recovery key keeps opening your data, and nothing is given up.\n" +
		"Type the word \"%s\" to give it up: "
	LostSystems = "Which old systems were replaced for good is not known any more (%v).\n  Old systems with known holes may open your data again. If you have had a newer system than this one, do not go on."
	LostManager = "The boot manager that has started this machine is an old one, which a newer one had replaced.\n  Its holes may be known. Somebody has put it back."
	// LostProgram is of a program in PCR 4. The firmware's vendor may have signed it, as any
	// distribution's loader is signed, and the boot manager that it starts looks like one that the
	// firmware has started.
	LostProgram = "A program which is not this machine's own (SHA-256 %s) has run before this system, and did not in the last good start.\n" +
		"  A loader that a vendor has signed starts anything, and what it starts could open your data. Take out sticks and disks that are not yours, and start again."
	// LostUnseen is of a boot manager that the TPM does not know. The list that knows which ones
	// were replaced can be an older one, put back.
	LostUnseen     = "The TPM does not know the boot manager that has started this machine.\n  An old one with known holes may have been put back."
	LostRecord     = "The TPM kept the list of systems that may open your data, and cannot hold it now.\n  Every system that it opens your data for once can do so for ever, also after an update has closed its holes."
	LostPrograms   = "The TPM checked which boot manager starts this machine (PCR 4), and would not any more.\n  An old boot manager with known holes could be put back."
	LostPIN        = "The TPM asked for a PIN, and would not any more: what the header keeps of it was removed or altered.\n  Anyone who has this machine in hand could have it open your data."
	LostSecureBoot = "Secure Boot is off.\n  Whatever the firmware starts could open your data."
	BeforeKey      = "\nThis machine's TPM cannot be used: %v.\n" +
		"If it has worked so far, switch the machine off and on before you type the recovery key. Where the firmware's setup\n" +
		"can switch the TPM off (it may be called PTT, fTPM or Security Device), do that instead: nobody can have it release\n" +
		"anything then, and the recovery key opens your data without a further question.\n"
	WithoutTPM = "\nWARNING: this machine's TPM cannot be used: %v.\n\n" +
		"- It cannot be told that the start is over. If it works after all, root of the running system\n" +
		"  can have it release this machine's secret, and keep that for ever.\n" +
		"- It does not check which system has asked you for the recovery key, and with which settings.\n\n"
	WithoutTPMAsk = "Somebody who had this machine in hand may want exactly that. If the TPM has worked so far and you do not\n" +
		"know why it does not now, press Enter, and switch the machine off and on.\n" +
		"Type the word \"%s\" to start all the same: "
)

// A reset.
const (
	ResetAsked = `
A FACTORY RESET: this was asked for from the running system,
with ` + "`halogenctl reset`" + `. If it was not you who did, press Enter: somebody else may be
root there. Then nothing is changed, and the machine starts as usual.
`
	ResetWipes = "This wipes the root partition of %s (%s %s, %d MiB): everything that was ever stored on this machine,\n" +
		"its Secure Boot keys, and what the TPM knows of them. There is no way back, with no recovery key.\n"
	ResetName      = "Type the machine's name, %s, to do it: "
	ResetRefused   = "nothing was changed"
	ResetKeysGone  = "The keys are gone, and nothing opens the root partition any more.\n"
	ResetRecord    = "The TPM keeps a record that nothing needs any more: %v\n"
	ResetNoDiscard = "The medium was not told to forget (%v); what is on it is noise without the keys.\n"
	ResetDone      = "The root partition is wiped. Now open the firmware's setup, clear its Secure Boot keys (Setup Mode), leave\n" +
		"Secure Boot enabled, and start again: the machine makes itself new, and shows a new recovery key.\n"
	KeepHomeAsked = `
A RESET THAT KEEPS /home: this was asked for from the running system,
with ` + "`halogenctl reset --keep-home`" + `. If it was not you who did, press Enter: somebody
else may be root there. Then nothing is changed, and the machine starts as usual.
`
	KeepHomeAgain = `
A RESET THAT KEEPS /home was begun on this machine and not completed, and a system
has run since. Going on deletes what was made meanwhile, too. An empty line gives it up:
what is deleted already is gone, and the machine starts with the rest.
`
	KeepHomeNobody = `
A RESET THAT KEEPS /home was confirmed at the recovery console: but it would keep no
account of this machine's. An empty line gives it up, and nothing is changed.
`
	KeepHomeDeletes = "This deletes all that was changed on this machine but /home: settings, what programs keep in /var, and what was installed\n" +
		"beside the system. Nothing brings it back. Accounts whose home lies under /home stay, with their passwords and with the groups\n" +
		"that the system itself has; root's password is the system's own again. This machine's keys stay.\n"
	PageOf      = "Page %d of %d: Enter shows the next. "
	NobodyStays = "No account is kept: none has a home under /home.\n"
	TheyStay    = "These accounts are kept:\n"
	OneStays    = "  %.64s, number %d"
	InGroups    = ", in "
)
