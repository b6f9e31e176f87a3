// Package statefiles is where the boot and the running system leave files for each other, and
// the note of a release that is to be staged, which one writes and the other reads. What else
// lies there has packages of its own: the journal (boot/journal), the notes of the recovery key
// and of the phrase (boot/keynote, boot/phrase), the answers of the first start
// (boot/answers).
//
// It refuses to say what is done about a file: the side that reads it does.
package statefiles

import (
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

// The directory that the boot and the running system share.
const (
	Directory = "/var/lib/halogen"            // where the running system has it
	OnRoot    = "halogen/shared"              // where the root partition has it
	AtConsole = StateDirectory + "/" + OnRoot // where the recovery console has it, once the root partition is open
)

// StateDirectory is where the boot and the recovery console have the root partition.
const StateDirectory = "/run/state"

// RunDirectory is what the running system may read of this boot.
const RunDirectory = "/run/halogen"

// Names in the shared directory.
const (
	// StagedName is the note of a release that is to be staged: [Staged].
	StagedName = "staged.json"
	// FetchDirectory has a directory for each version of which files were fetched.
	FetchDirectory = "fetch"
	// LockName is locked by those who change the slots.
	LockName = "ota.lock"
)

// Staged is the release that the next boot is to stage: its slot is complete.
type Staged struct {
	Format  int              `json:"format"`
	Version contract.Version `json:"version"`
	Slot    layout.Slot      `json:"slot"`
}

// StagedFormat is the number of Staged's format; a note with another is refused.
const StagedFormat = 1

// MaxStaged bounds the note in bytes.
const MaxStaged = 4 << 10
