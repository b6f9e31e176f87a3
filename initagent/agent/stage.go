package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/systems"
	"halogenos.internal/initagent/tpm"
)

// maxNote bounds stagedFile in bytes, and noteFormat is its format's number.
const (
	maxNote    = 4 << 10
	noteFormat = 1
)

// attemptsFile has the version that is being staged and how often that was begun,
// while it is. maxAttempts is how many beginnings a release gets.
const (
	attemptsFile = ownDirectory + "/staging"
	maxAttempts  = 3
)

// A stagedNote is what the fetcher leaves when a slot is complete.
type stagedNote struct {
	Format  int              `json:"format"`
	Version contract.Version `json:"version"`
	Slot    layout.Slot      `json:"slot"`
}

// A refusal is a release that is not staged, today or later. Any other error is
// of the machine, and the release is looked at again at the next boot.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// releaseWaits reports whether the fetcher has left a release to be staged. Whether
// it may be is for stage to say, which reads more.
func (a *Agent) releaseWaits() bool {
	if a.facts.Staged != slot.NotTried || !a.runsBlessed() {
		return false
	}
	note, err := a.readNote()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil:
		return true
	case note.Version == a.Contract.Version:
		return false // it is running, and the cut that left the note harmed nothing
	}
	_, there := a.nameOf(note.Version)
	return !there // or else it is staged
}

// nameOf is the name of a version's UKI on the ESP.
func (a *Agent) nameOf(v contract.Version) (bls.Name, bool) {
	for _, n := range a.Names {
		if n.ImageID == a.Contract.ImageID && n.Version == v {
			return n, true
		}
	}
	return bls.Name{}, false
}

func (a *Agent) readNote() (*stagedNote, error) {
	text, err := a.Store.Read(stagedFile, maxNote)
	if errors.Is(err, hw.ErrUnfit) {
		return nil, refusal{err}
	}
	if err != nil {
		return nil, err
	}
	note := new(stagedNote)
	if err := strictjson.Decode(text, note); err != nil {
		return nil, refuse("what the fetcher left cannot be read: %w", err)
	}
	if note.Format != noteFormat || note.Version == 0 || !note.Slot.Valid() {
		return note, refuse("what the fetcher left is malformed: format %d, version %s, slot %s", note.Format, note.Version, note.Slot)
	}
	return note, nil
}

// stage makes a fetched release the next one to be tried. Everything that the
// fetcher has checked is checked again: it may have been taken over since, or
// have been somebody else. The one thing not read again is the content of the
// slot, which the running trial will read through dm-verity.
//
// What is refused is forgotten; what could not be done is tried at the next boot.
func (a *Agent) stage() error {
	note, err := a.readNote()
	if err == nil {
		err = a.attempt(note)
	}
	r, refused := errors.AsType[refusal](err)
	if !refused {
		return err
	}
	e := journal.Entry{Kind: journal.Refused, Reason: r.Error()}
	if note != nil {
		e.Version, e.Slot = note.Version, note.Slot
	}
	a.note(e)
	return errors.Join(err, a.Store.Remove(stagedFile))
}

// attempt counts the beginnings that have no end: the running system is blessed and
// has no tries to lose, so a release that takes the machine down while it is looked
// at would do so at every boot.
func (a *Agent) attempt(note *stagedNote) error {
	var v contract.Version
	n := 0
	text, err := a.Store.Read(attemptsFile, maxNote)
	if err == nil {
		_, _ = fmt.Sscanf(string(text), "%d %d", &v, &n) // or else it counts from the start
	}
	if v != note.Version {
		n = 0
	}
	if n < maxAttempts {
		if err := a.Store.Keep(attemptsFile, fmt.Appendf(nil, "%d %d\n", note.Version, n+1)); err != nil {
			return err
		}
		err = a.stageNoted(note)
	} else {
		err = refuse("the machine went down %d times while this was staged", n)
	}
	return errors.Join(err, a.Store.Remove(attemptsFile))
}

func (a *Agent) stageNoted(note *stagedNote) error {
	c, err := a.checkRelease(note)
	if err != nil {
		return err
	}
	if err := a.ListRelease(c.release); err != nil {
		return err
	}
	if c.uki, err = a.signed(c.uki); err != nil {
		return err
	}
	if err := a.activate(c); err != nil {
		return err
	}
	a.note(journal.Entry{Kind: journal.Staged, Version: note.Version, Slot: note.Slot})
	a.Log.Say("%s %s is in slot %s and gets %d tries", c.contract.ImageID, note.Version, note.Slot, freshTries)
	if err := a.Store.Remove(stagedFile); err != nil {
		a.Log.Say("what the fetcher left was not removed: %v", err) // it is staged all the same
	}
	return nil
}

// signed has this machine's own key sign an image, where there is one, and makes
// sure that the firmware will start it.
func (a *Agent) signed(image []byte) ([]byte, error) {
	if a.Secret == nil {
		return nil, errors.New("the machine's keys are not at hand in this boot")
	}
	keys, err := a.StoredKeys(a.Secret)
	if err != nil {
		return nil, err
	}
	if keys != nil {
		defer keys.Wipe()
		if image, err = dbSigner(keys).Sign(image); err != nil {
			return nil, refusal{err}
		}
	}
	if !rootpart.Enforces(a.FirmwareKeys) {
		return image, nil
	}
	if err := a.Starts(image); err != nil {
		return nil, refuse("the firmware would not start it: %w", err)
	}
	return image, nil
}

// dbSigner signs what this machine starts. The date is fixed, so that the same
// image is signed to the same bytes.
func dbSigner(keys *secureboot.KeySet) enroll.DBSigner {
	return enroll.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
}

// activate gives a release that was checked its place: in the TPM's record, in the
// partition table, and, last of all, on the ESP.
//
// Until its UKI has its name nothing starts it. So, cut before the record is
// written, or while it is: the running system unlocks by the old record or the
// new one, and the note is still there: this is done again. Cut after it: the
// record allows a system that is not there; updatePolicy takes it out again, or
// this puts it to use. Cut while the table is written: one of its copies is good,
// and the running slot's entries are the same in both. Cut after it: the other
// slot has its name, which matters to no UKI there is. Cut while the UKI is written:
// systems.Put leaves a file that nothing starts. Cut after it: the trial begins,
// and the note says what is true.
//
// The fallback's branch leaves the record here, and not before: its slot was given
// up when the fetcher emptied it, and what is left of its UKI goes first.
func (a *Agent) activate(c *candidate) error {
	admit, err := a.admission(c)
	if err != nil {
		return err
	}
	table := a.renamed(c)
	if table != nil {
		if err := table.Validate(); err != nil {
			return err
		}
	}
	if err := a.makeRoom(c); err != nil {
		return err
	}
	if err := admit(); err != nil {
		return fmt.Errorf("let version %s unlock the root partition: %w", c.contract.Version, err)
	}
	if table != nil {
		if err := a.putTable(table); err != nil { // the running system is open
			return err
		}
	}
	return a.WriteESP(func(dir hw.ESPDir) error { return systems.Put(dir, c.name, c.uki) })
}

// renamed is the table in which the slot's partitions spell the release's root
// hash; nil where none has to be written. Where the running slot has the same
// content the release runs from that one, since two partitions of one name would
// leave nobody sure which is meant.
func (a *Agent) renamed(c *candidate) *gpt.Table {
	system, tree := layout.SystemUUID(c.contract.Root()), layout.VerityUUID(c.contract.Root())
	if s, named := layout.FindSlot(a.Table, system, tree); named && (s == c.slot || s == a.state.Booted) {
		return nil
	}
	return layout.Rename(a.Table, c.slot, system, tree)
}

// makeRoom takes away what is left of the systems whose content is gone, and asks
// for room for the new one before anything else is changed.
func (a *Agent) makeRoom(c *candidate) error {
	var gone []bls.Name
	for _, n := range a.Names {
		if n.ImageID == a.Contract.ImageID && n.Version != a.Contract.Version && a.isGone(n, c) {
			gone = append(gone, n)
		}
	}
	return a.WriteESP(func(dir hw.ESPDir) error {
		for _, n := range gone {
			a.Log.Say("%s goes: no slot holds its content", n)
			if err := systems.Remove(dir, n); err != nil {
				return err
			}
		}
		return systems.CheckRoom(dir, int64(len(c.uki)))
	})
}

// isGone reports whether a UKI names content that neither the running slot has nor
// the one that holds the new release.
func (a *Agent) isGone(n bls.Name, c *candidate) bool {
	gone := false
	err := a.ReadESP(func(files fs.FS) error {
		image, err := rootpart.ReadUKI(files, n)
		if err != nil {
			return err
		}
		have, _, err := rootpart.Describe(image)
		if err != nil {
			return err
		}
		gone = !bytes.Equal(have.RootHash, a.Contract.RootHash) && !bytes.Equal(have.RootHash, c.contract.RootHash)
		return nil
	})
	return err == nil && gone
}

// admission returns what lets the release unlock the root partition, having done
// all of it that can fail without writing. Secure Boot's register will hold what it
// holds now: the same keys, and the same one of them signs.
func (a *Agent) admission(c *candidate) (func() error, error) {
	if a.Lock == nil || a.Lock.Sealed == nil {
		return func() error { return nil }, nil // a person unlocks it
	}
	if a.Chip.Err != nil {
		return a.unrecorded(c)
	}
	start, err := a.ToldStart()
	if err != nil {
		return nil, err
	}
	fresh, err := rootpart.ReadImage(c.uki)
	if err != nil {
		return nil, refusal{err}
	}
	known := a.KnownManagers(start)
	mine, theirs := start.System(start.Running, known, nil), start.System(fresh, known, nil)
	if a.Lock.Sealed.Kind == policy.KindPCR {
		return a.Resealing(start.Boot, mine, theirs)
	}
	if !a.RecordsPolicy() {
		return nil, errors.New("the TPM did not unlock this boot, so that what it would make of the new system is not known")
	}
	able := fresh.Abilities.PolicyRecord >= policy.RecordNewest
	switch {
	case a.Record.Programs && !able:
		return nil, refuse("it cannot read this machine's record in the TPM, which is over PCR 4")
	case a.Record.Programs && start.Unbound != nil:
		return nil, fmt.Errorf("what the TPM will hold in PCR 4 when the new system runs is not known: %w", start.Unbound)
	}
	record, err := a.Record.Admit(start.Boot, able && start.Unbound == nil, mine, theirs)
	if err != nil {
		return nil, err
	}
	return func() error { return a.ReplaceRecord(record) }, nil
}

// unrecorded is admission for a machine whose root partition is bound to a TPM that is
// gone, or does not work, and which does without one in this boot: its owner has typed
// the recovery key, and the word where there is a TPM that could not be told. Every
// system asks for the key there, so that there is nothing to admit. The record stays as
// it is: a TPM that comes back does not know the new system, whose owner is then asked
// to accept the machine, once.
//
// A TPM that works again by now is no reason: the next boot tells it.
func (a *Agent) unrecorded(c *candidate) (func() error, error) {
	absent := errors.Is(a.Chip.Err, tpm.ErrAbsent) && !a.Chip.Ended
	if a.Contract.TPM != contract.Optional || !absent && !a.Chip.Untold {
		return nil, fmt.Errorf("the TPM cannot be told of the new system in this boot: %w", a.Chip.Err)
	}
	return func() error {
		a.Log.Say("WARNING: the TPM was not told of version %s (%v): it asks for the recovery key, also when the TPM is there again", c.contract.Version, a.Chip.Err)
		return nil
	}, nil
}
