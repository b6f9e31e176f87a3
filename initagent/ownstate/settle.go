package ownstate

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/upper"
)

// Settle notes that the state of this system, which is blessed, counts, after that
// of the one that was blessed last. The state of a trial that was not blessed goes: what
// changes from now on is merged when it starts again. Cut between the two, the next start
// of this system does the rest. What `ota bless` has noted stays, and says nothing new.
func Settle(h *host.Host) error {
	found, err := Known(h)
	if err != nil {
		return err
	}
	if found.Current() != Own(h) || found.Noted != "" {
		text := strings.Join(found.Settled(Own(h)), "\n") + "\n"
		if err := h.Store.Keep(upper.Blessed, []byte(text)); err != nil {
			return err
		}
	}
	var errs []error
	for _, s := range upper.Stale(found, Own(h)) {
		errs = append(errs, discardState(h, s))
	}
	return errors.Join(errs...)
}

// discardState removes the state of a system, and gives the links back after it that it
// has set in shared directories. Cut between the two, the list of these links is there
// still: a first start sets them again, and the next boot of this system gives them back.
// In the other order a trial whose links are back could start on the state that it has.
func discardState(h *host.Host, system string) error {
	if err := h.Store.Discard(path.Join(upper.Directory, system)); err != nil {
		return fmt.Errorf("the state of system %.16s: %w", system, err)
	}
	return h.Store.GiveBack(system, h.Path(host.SystemDirectory))
}

// Leave removes the state of all systems but this one, which is blessed and
// has its own: the slot of each of them holds another release from now on. The same
// release once more is merged again when it starts, and is a trial: that it was blessed
// in an earlier life counts no more.
//
// It comes before the new UKI has its name. Cut before or within it, this system
// starts, whose state is untouched; what is left goes the next time.
//
// Only what the release that is staged would find has to go, and it finds what has its own
// root hash: its state, and that it was blessed. Everything else that cannot be removed is
// of systems that no slot holds. None of them starts before it is staged itself, and then
// its state has to go. Until then it takes up room, and is said.
func Leave(h *host.Host, next verity.Root) error {
	found, err := Known(h)
	if err != nil {
		return err
	}
	if !found.Has(Own(h)) {
		return nil
	}
	if err := leaveBlessed(h, found); err != nil {
		if found.Proven(next.String()) {
			return err
		}
		h.Log.Say("which system ran last is not noted: %v", err)
	}
	for _, s := range upper.Leave(found, Own(h)) {
		if found.Proven(s) {
			h.Log.Say("what was changed in /etc under system %.16s goes: a release is installed in its place", s)
		}
		if err := discardState(h, s); err != nil {
			if s == next.String() {
				return err
			}
			h.Log.Say("it stays, and is not used: %v", err)
		}
	}
	if found.Unnamed {
		return leaveUnnamed(h)
	}
	return nil
}

// leaveUnnamed removes what a release before this one kept for all systems, of which this
// one has its own. No system that a slot holds opens it any more.
func leaveUnnamed(h *host.Host) error {
	entries, err := Entries(h)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Mode != stateconf.Overlay {
			continue // what this system has not taken over stays
		}
		if err := h.Store.Discard(path.Join(upper.Unnamed, upper.Name(e.Path))); err != nil {
			h.Log.Say("%s as it was kept for all systems stays, and is not used: %v", e.Path, err)
		}
	}
	return nil
}

// leaveBlessed notes that of all systems this one alone has run blessed. Cut after it, the
// state of the others is that of trials, which goes all the same. What `ota bless` has
// noted is in the list then, or is of a system whose state goes: where it cannot be
// removed, it says no more than root of this system could have said.
func leaveBlessed(h *host.Host, found upper.Found) error {
	if err := h.Store.Remove(BlessedNote); err != nil {
		h.Log.Say("what was blessed last stays noted: %v", err)
	}
	if len(found.Blessed) == 1 && found.Current() == Own(h) {
		return nil
	}
	return h.Store.Keep(upper.Blessed, []byte(Own(h)+"\n"))
}
