package offer

import (
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
)

// Verdict is what becomes of an offer.
type Verdict string

// The verdicts.
const (
	Take    Verdict = "take"
	Current Verdict = "current" // nothing newer is offered
	Later   Verdict = "later"   // it is not this machine's turn
	Spent   Verdict = "spent"   // it has failed here before
	Refuse  Verdict = "refuse"
)

// A Decision is a verdict, and the reason with the way out of it.
type Decision struct {
	Verdict Verdict          `json:"verdict"`
	Version contract.Version `json:"version,omitempty"` // that is offered
	Reason  string           `json:"reason"`
	// SlotSize is what the machine's slots must have for it, in bytes, where they have less
	// and that is why it is refused; 0 elsewhere.
	SlotSize int64 `json:"needs_slot_size,omitempty"`
}

// Refused is a Decision that is an error to the one who wanted the release.
type Refused struct{ Decision }

// Error implements error.
func (r *Refused) Error() string { return r.Reason }

// Err is the decision as an error; nil unless it is a refusal.
func (d Decision) Err() error {
	if d.Verdict == Refuse || d.Verdict == Spent {
		return &Refused{d}
	}
	return nil
}

// Choose picks one of the releases that a manifest offers, and decides over it by
// its version: the newest, or where that is not for this machine (yet), the next.
// Where releases lie in between that it needs, the first of those takes its place.
func (s *Self) Choose(m *manifest.Manifest) (manifest.Offer, Decision, error) {
	all, err := m.Offers(s.Channel)
	if err != nil {
		return manifest.Offer{}, Decision{}, err
	}
	for _, o := range all {
		if o, d := s.byWayOf(m, o); d.Verdict == Take {
			return o, d, nil
		}
	}
	o, d := s.byWayOf(m, all[0])
	return o, d, nil
}

// byWayOf decides over an offer, or over the step that comes before it.
func (s *Self) byWayOf(m *manifest.Manifest, o manifest.Offer) (manifest.Offer, Decision) {
	d := s.ByVersion(o.Entry, o.Channel)
	step := m.Step(s.Running.Version, o.Version)
	if step == 0 || d.Verdict != Take {
		return o, d
	}
	end := o.Version
	o.Entry = manifest.Entry{Version: step} // which every machine takes whose turn the end is
	d = s.ByVersion(o.Entry, o.Channel)
	if d.Verdict == Take {
		d.Reason += fmt.Sprintf("; version %s is offered, and this machine needs this one first: run `ota fetch` again when it runs and is blessed", end)
	} else {
		d.Reason += fmt.Sprintf(". It is needed on the way to version %s", end)
	}
	return o, d
}

// ByVersion decides over a version that a channel offers, before anything of
// it is fetched.
func (s *Self) ByVersion(e manifest.Entry, channel manifest.Channel) Decision {
	d := Decision{Verdict: Refuse, Version: e.Version}
	running := s.Running.Version
	why, failed := s.Failed[e.Version]
	switch {
	case e.Version == running:
		d.Verdict, d.Reason = Current, fmt.Sprintf("version %s, the newest of channel %s, is running", running, channel)
	case e.Version < running:
		d.Verdict = Current
		d.Reason = fmt.Sprintf("channel %s offers version %s, older than %s, which is running: a version that is not newer is never taken; there is nothing to do until a newer one is released", channel, e.Version, running)
	case failed:
		d.Verdict = Spent
		d.Reason = fmt.Sprintf("version %s has failed on this machine (%s) and is not tried again: the next release will be. `ota retry %s` takes it off the list", e.Version, why, e.Version)
	case !s.Impatient && !e.Includes(s.Machine):
		d.Verdict = Later
		d.Reason = fmt.Sprintf("version %s goes to %d %% of the machines first, and it is not this one's turn: wait, or take it at once with --now", e.Version, e.Percent)
	default:
		d.Verdict, d.Reason = Take, fmt.Sprintf("version %s is newer than %s, which is running", e.Version, running)
		if channel != s.Channel && s.Channel != "" {
			d.Reason += fmt.Sprintf("; it comes from channel %s, which is ahead of %s", channel, s.Channel)
		}
	}
	return d
}

// ByRelease decides over a release whose signature was checked, offered as
// that version.
func (s *Self) ByRelease(r *release.Release, e manifest.Entry, channel manifest.Channel) Decision {
	d := Decision{Verdict: Refuse, Version: e.Version}
	running := s.Running
	switch {
	case r.ImageID != running.ImageID:
		d.Reason = fmt.Sprintf("release is of the image %s, and this machine runs %s: another image is another installation: correct Server= in ota.conf, or tell the distributor", r.ImageID, running.ImageID)
	case r.Arch != running.Arch:
		d.Reason = fmt.Sprintf("release is for %s machines, and this one is %s: correct Server= in ota.conf, or tell the distributor", r.Arch, running.Arch)
	case r.Version != e.Version:
		d.Reason = fmt.Sprintf("archive of version %s holds version %s: the server mixes releases, tell its distributor", e.Version, r.Version)
	case r.Epoch < max(s.Floor, running.Epoch):
		d.Reason = fmt.Sprintf("version %s has epoch %d, and this machine's floor is %d: it has been replaced for security reasons, and could not unlock this machine's data; wait for a release of epoch %d or higher", r.Version, r.Epoch, max(s.Floor, running.Epoch), max(s.Floor, running.Epoch))
	default:
		known := s.ByVersion(e, channel)
		if d.Reason = s.fits(r); d.Reason == "" || known.Verdict != Take {
			return known // a release that is not to be taken asks for nothing
		}
		if r.SlotSize > s.SlotSize {
			d.SlotSize = r.SlotSize
		}
	}
	return d
}

// fits says why a release does not fit into its slot.
func (s *Self) fits(r *release.Release) string {
	tree, err := verity.TreeSize(uint64(r.ImageSize) / verity.BlockSize)
	switch {
	case err != nil:
		return err.Error()
	case s.SlotSize != 0 && r.SlotSize > s.SlotSize:
		return fmt.Sprintf("version %s needs slots of %d MiB, and this machine's have %d MiB: `ota grow` makes them larger", r.Version, layout.AlignUp(r.SlotSize)>>20, s.SlotSize>>20)
	case s.TreeSize != 0 && tree > s.TreeSize:
		return fmt.Sprintf("the hash tree of version %s takes %d MiB, and this machine's partition for it has %d MiB: only a new installation makes a larger one; ask the distributor", r.Version, layout.AlignUp(tree)>>20, s.TreeSize>>20)
	}
	return ""
}
