package agent

import (
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/systems"
)

// history is the journal as it will be once this boot has handed over.
func (a *Agent) history() []journal.Entry {
	return append(a.Journal.Entries(), a.bootEntry())
}

// bootEntry is what a boot leaves when it hands over.
func (a *Agent) bootEntry() journal.Entry {
	return journal.Entry{
		Kind: journal.Boot, Version: a.Contract.Version, Slot: a.State.Booted, Trial: a.State.Trial,
		Reason: a.slotReason(), Watchdog: a.watchdogReset,
	}
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
	if err := a.Journal.Append(a.entryAbout(a.judged.trial, journal.Failed, a.judged.reason)); err != nil {
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
	if err := a.Journal.Append(a.entryAbout(a.judged.trial, journal.Retry, a.judged.reason)); err != nil {
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
	return journal.Entry{Kind: kind, Version: n.Version, Slot: a.State.Booted.Other(), Reason: reason}
}
