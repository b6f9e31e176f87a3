package upkeep

import (
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/staging"
)

// history is the journal as it will be once this boot has handed over.
func history(h *host.Host) []journal.Entry {
	return append(h.Journal.Entries(), h.BootEntry())
}

// A Judgement is what is held of a trial that has used up its tries, and why.
type Judgement struct {
	Verdict bootflow.Verdict
	Trial   bls.Name
	Reason  string
}

// judgeTrial says what is held of a newer system that has used up its tries.
func judgeTrial(h *host.Host) Judgement {
	for _, n := range h.Names {
		if n.ImageID != h.Contract.ImageID || n.Version <= h.Contract.Version || !n.Bad() {
			continue
		}
		verdict, reason := journal.Judge(history(h), n.Version)
		if verdict != bootflow.NoTrial {
			return Judgement{verdict, n, reason}
		}
	}
	return Judgement{}
}

// Remember notes that a version failed. The fetcher takes it no more.
func Remember(h *host.Host, j Judgement) error {
	if err := h.Journal.Append(entryAbout(h, j.Trial, journal.Failed, j.Reason)); err != nil {
		return err
	}
	h.Log.Say("version %s is not taken again: %s", j.Trial.Version, j.Reason)
	return nil
}

// Retry gives a trial that was only interrupted its tries once more.
//
// The journal comes first. Cut before it, all is as it was, and judged again.
// Cut between it and the rename, the journal has a second round in which the
// system was never reached, and it counts as failed: a good release may have to
// be fetched again, but no cut can give it a third round. Cut after it, the trial
// goes on.
func Retry(h *host.Host, j Judgement) error {
	if err := h.Journal.Append(entryAbout(h, j.Trial, journal.Retry, j.Reason)); err != nil {
		return err
	}
	return h.WriteESP(func(dir hw.ESPDir) error {
		fresh, err := esp.Retry(dir, j.Trial, staging.Tries)
		if err == nil {
			h.Log.Say("%s gets its tries again: %s", fresh, j.Reason)
		}
		return err
	})
}

// entryAbout is an entry about a system that is not the running one.
func entryAbout(h *host.Host, n bls.Name, kind journal.Kind, reason string) journal.Entry {
	return journal.Entry{Kind: kind, Version: n.Version, Slot: h.State.Booted.Other(), Reason: reason}
}
