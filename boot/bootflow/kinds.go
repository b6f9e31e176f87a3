package bootflow

import "fmt"

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
	AskOthers                 // ask whether other systems go on starting, as the installer has left it
	Enroll                    // make, sign with and enroll this machine's keys
	MakeRoot                  // make the root partition and seal its key
	Unlock                    // open the root partition with the TPM
	AskPIN                    // open it with the TPM and a PIN that somebody types
	AskKey                    // open the root partition with a key that somebody types
	NewSecret                 // make a new machine secret, if somebody types the recovery key
	NewKey                    // make a new recovery key, if somebody wants to see it
	NewPhrase                 // make a new phrase, if somebody wants it
	Reset                     // wipe the root partition, if somebody types the machine's name
	KeepHome                  // delete all but /home from the root partition, if somebody types the machine's name
	RestoreState              // put directories back as they were before an update
	Remember                  // note that a version failed its trial
	Retry                     // give a trial that was only interrupted its tries again
	Mend                      // make the ESP whole from the root partition's copies, or those from it
	Stage                     // activate a fetched release
	UpdatePolicy              // write the TPM's policy
	UpdateManager             // put the blessed release's boot manager in the place of an older one
	TrustModules              // ask whether the release's kernel modules are to be trusted, and give their certificate to the firmware
	Revoke                    // have the firmware refuse a boot manager that was replaced, or what the release names
	SignUpdater               // sign the program by which fwupd updates firmware
	GrowSlots                 // make the root partition smaller, and the slots larger
	CarryState                // make this system's own /etc from that of the one before
	SettleState               // note whose /etc counts, and remove that of a trial that was not blessed
	AddExtensions             // open the extensions that this machine has enabled
	MountState                // mount the root partition's directories
	Condemn                   // take the slot's tries away
	Reboot                    // start again
	SwitchRoot                // hand over to the system
	RecoverNext               // have the next boot open the recovery console, and start again
)

// none stands for a kind whose outcome nothing holds: where it fails, the boot ends.
const none Kind = -1

// kinds has, for each kind of step, its name in the journal and under which kind its outcome
// is held: what opens the root partition by the TPM is one question, with a PIN or without,
// and so is the judgement on a trial.
var kinds = [...]struct {
	name    string
	outcome Kind
}{
	Recovery:      {"recovery", none},
	Install:       {"install", Install},
	Heal:          {"heal", Heal},
	Partition:     {"partition", none},
	MakeTree:      {"make-tree", none},
	OpenVerity:    {"open-verity", OpenVerity},
	AskOthers:     {"ask-others", AskOthers},
	Enroll:        {"enroll", Enroll},
	MakeRoot:      {"make-root", none},
	Unlock:        {"unlock", Unlock},
	AskPIN:        {"ask-pin", Unlock},
	AskKey:        {"ask-key", AskKey},
	NewSecret:     {"new-secret", NewSecret},
	NewKey:        {"new-key", NewKey},
	NewPhrase:     {"new-phrase", NewPhrase},
	Reset:         {"reset", Reset},
	KeepHome:      {"keep-home", KeepHome},
	RestoreState:  {"restore-state", RestoreState},
	Remember:      {"remember", Remember},
	Retry:         {"retry", Remember},
	Mend:          {"mend", Mend},
	Stage:         {"stage", Stage},
	UpdatePolicy:  {"update-policy", UpdatePolicy},
	UpdateManager: {"boot-manager", UpdateManager},
	TrustModules:  {"trust-modules", TrustModules},
	Revoke:        {"revoke", Revoke},
	SignUpdater:   {"sign-updater", SignUpdater},
	GrowSlots:     {"grow-slots", GrowSlots},
	CarryState:    {"carry-state", CarryState},
	SettleState:   {"settle-state", SettleState},
	AddExtensions: {"add-extensions", AddExtensions},
	MountState:    {"mount-state", MountState},
	Condemn:       {"condemn", none},
	Reboot:        {"reboot", none},
	SwitchRoot:    {"switch-root", none},
	RecoverNext:   {"recover-next", none},
}

// String returns the step's name as the journal has it.
func (k Kind) String() string {
	if !k.known() {
		return fmt.Sprintf("step-%d", int(k))
	}
	return kinds[k].name
}

func (k Kind) known() bool { return k >= 0 && int(k) < len(kinds) }

// MarshalText writes the step's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// HasOutcome reports whether a boot goes on after a step of this kind has failed.
func (k Kind) HasOutcome() bool { return k.known() && kinds[k].outcome != none }

// An Outcome is what came of a step that can fail.
type Outcome int

// Outcomes.
const (
	NotTried Outcome = iota
	Done
	Failed
)

// Outcomes is what came of the steps, by the kind that holds it (Facts.Came, Facts.Note).
type Outcomes [len(kinds)]Outcome

// Came is what came of a kind of step; NotTried where nothing holds it.
func (f Facts) Came(k Kind) Outcome {
	if !k.HasOutcome() {
		return NotTried
	}
	return f.Outcomes[kinds[k].outcome]
}

// Rewrote is what came of the step of this boot that has the TPM's record allow another PCR 7
// beside the one of now. Until the restart nothing takes either back.
func (f Facts) Rewrote() Outcome { return max(f.Came(TrustModules), f.Came(Revoke)) }

// Note keeps what came of a step. It returns false where nothing holds it, and the boot ends
// if the step has failed.
func (f *Facts) Note(k Kind, o Outcome) bool {
	if !k.HasOutcome() {
		return false
	}
	f.Outcomes[kinds[k].outcome] = o
	return true
}
