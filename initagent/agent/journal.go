package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/systems"
)

const (
	journalFile = fetched.Shared + "/" + journal.Name
	// maxJournal bounds what is read of a journal in bytes. It is rewritten at
	// journal.MaxSize; what is so much larger is none.
	maxJournal = 16 << 20
)

// note puts an entry into the boot journal: at once where the root partition is
// open, or else as soon as it is. One that cannot be written is not worth a boot.
func (a *Agent) note(e journal.Entry) {
	e.Time, e.Boot = a.Now(), a.bootID()
	a.unwritten = append(a.unwritten, e)
	a.writeJournal()
}

// noteSelf is note about the running system.
func (a *Agent) noteSelf(kind journal.Kind, reason string) {
	e := journal.Entry{Kind: kind, Reason: reason, Slot: a.state.Booted, Trial: a.state.Trial}
	if a.Contract != nil {
		e.Version = a.Contract.Version
	}
	a.note(e)
}

// writeJournal writes the entries that have been waiting.
func (a *Agent) writeJournal() {
	if !a.storeReady() || len(a.unwritten) == 0 {
		return
	}
	if err := a.appendJournal(); err != nil {
		a.Log.Say("the boot journal was not written: %v", err)
	}
}

// storeReady reports whether there is a place for files: the root partition, or
// what a machine without one has in memory.
func (a *Agent) storeReady() bool {
	return a.inMemory || a.rootOpen && a.state.Root == slot.RootOpen
}

func (a *Agent) appendJournal() error {
	text, err := a.journalText()
	if err != nil {
		return err // and is not replaced: it says what failed
	}
	for _, e := range a.unwritten {
		if text, err = journal.Append(text, e); err != nil {
			return err
		}
	}
	if err := a.makeShared(); err != nil {
		return err
	}
	if err := a.Store.Keep(journalFile, text); err != nil {
		return err
	}
	a.unwritten = nil
	return nil
}

// journalText reads the journal. What is no journal at all begins again.
func (a *Agent) journalText() ([]byte, error) {
	text, err := a.Store.Read(journalFile, maxJournal)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, hw.ErrUnfit):
		a.Log.Say("the boot journal begins again: %v", err)
		return nil, nil
	}
	return text, err
}

// history is the journal as it will be once this boot has handed over.
func (a *Agent) history() []journal.Entry {
	var entries []journal.Entry
	if a.storeReady() {
		text, err := a.journalText()
		if err != nil {
			a.Log.Say("the boot journal cannot be read: %v", err)
		}
		entries = journal.Parse(text)
	}
	entries = append(entries, a.unwritten...)
	return append(entries, a.bootEntry())
}

// bootEntry is what a boot leaves when it hands over.
func (a *Agent) bootEntry() journal.Entry {
	return journal.Entry{
		Kind: journal.Boot, Version: a.Contract.Version, Slot: a.state.Booted, Trial: a.state.Trial,
		Reason: a.slotReason(), Watchdog: a.watchdogReset,
	}
}

// bootID is the kernel's name for this boot.
func (a *Agent) bootID() string {
	text, err := os.ReadFile(a.Path("proc/sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// slotReason says why the boot manager chose this system, as far as the names on
// the ESP tell.
func (a *Agent) slotReason() string {
	booted, known := a.BootedName()
	if !known {
		return "the file it was started from is not known"
	}
	return bls.Reason(booted, a.Names)
}

// A judgement is what is held of a trial that has used up its tries, and why.
type judgement struct {
	verdict slot.Verdict
	trial   bls.Name
	reason  string
}

// judgeTrial says what is held of a newer system that has used up its tries.
func (a *Agent) judgeTrial() judgement {
	for _, n := range a.Names {
		if n.ImageID != a.Contract.ImageID || n.Version <= a.Contract.Version || !n.Bad() {
			continue
		}
		verdict, reason := journal.Judge(a.history(), n.Version)
		if verdict != slot.NoTrial {
			return judgement{verdict, n, reason}
		}
	}
	return judgement{}
}

// remember notes that a version failed. The fetcher takes it no more.
func (a *Agent) remember() error {
	a.unwritten = append(a.unwritten, a.entryAbout(a.judged.trial, journal.Failed, a.judged.reason))
	if err := a.appendJournal(); err != nil {
		return err
	}
	a.Log.Say("version %s is not taken again: %s", a.judged.trial.Version, a.judged.reason)
	return nil
}

// retry gives a trial that was only interrupted its tries once more.
//
// The journal comes first. Cut before it, all is as it was, and judged again.
// Cut between it and the rename, the journal has a second round in which the
// system was never reached, and it counts as failed: a good release may have to
// be fetched again, but no cut can give it a third round. Cut after it, the trial
// goes on.
func (a *Agent) retry() error {
	a.unwritten = append(a.unwritten, a.entryAbout(a.judged.trial, journal.Retry, a.judged.reason))
	if err := a.appendJournal(); err != nil {
		return err
	}
	return a.WriteESP(func(dir hw.ESPDir) error {
		fresh, err := systems.Retry(dir, a.judged.trial, staging.Tries)
		if err == nil {
			a.Log.Say("%s gets its tries again: %s", fresh, a.judged.reason)
		}
		return err
	})
}

// entryAbout is an entry about a system that is not the running one.
func (a *Agent) entryAbout(n bls.Name, kind journal.Kind, reason string) journal.Entry {
	return journal.Entry{Time: a.Now(), Boot: a.bootID(), Kind: kind, Version: n.Version, Slot: a.state.Booted.Other(), Reason: reason}
}

// failures are the versions that are not taken again. That the journal cannot be
// read does not mean that nothing has failed.
func (a *Agent) failures() (map[contract.Version]string, error) {
	text, err := a.journalText()
	if err != nil {
		return nil, fmt.Errorf("which versions have failed is not known: %w: %w", systems.ErrUnread, err)
	}
	return journal.Failures(append(journal.Parse(text), a.unwritten...)), nil
}
