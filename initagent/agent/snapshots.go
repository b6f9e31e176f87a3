package agent

import (
	"fmt"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
)

// stateNote is what `ota rollback --state` leaves.
const stateNote = rootpart.Shared + "/" + snapshot.NoteName

// hasSnapshots reports whether the root partition's file system can have any. Where it
// cannot, nothing is looked for, and whatever asks for one is left alone.
func (a *Agent) hasSnapshots() bool { return a.Contract.RootFileSystem == "btrfs" }

// observeSnapshots looks whether directories are to go back.
func (a *Agent) observeSnapshots() {
	a.facts.StateAsked = a.facts.Restored == slot.NotTried && a.hasSnapshots() && snapshot.Asked(a.Store, stateNote)
}

// takeSnapshot takes one of the directories that all systems share, before a release is
// tried, and returns what the boot journal is to say of it; "" where there can be none.
// The release is staged all the same without one.
func (a *Agent) takeSnapshot(v contract.Version) string {
	if !a.hasSnapshots() {
		return ""
	}
	entries, err := a.stateEntries()
	var r snapshot.Record
	if err == nil {
		r, err = snapshot.Take(a.Store, snapshot.Record{
			Taken: a.Now(), For: v,
			System: snapshot.System{Version: a.Contract.Version, Slot: a.State.Booted, Root: a.ownState()},
		}, entries)
	}
	why := r.Missing
	if err != nil {
		why = err.Error()
	}
	if why != "" {
		a.Log.Say("WARNING: version %s is tried without a snapshot of the state, so that `ota rollback --state` will have nothing to go back to: %s", v, why)
		return "without a snapshot of the state: " + why
	}
	return "with a snapshot of " + strings.Join(r.Directories, ", ")
}

// restoreState puts the directories back that `ota rollback --state` is about. See
// snapshot.Restore for what a cut leaves.
func (a *Agent) restoreState() error {
	r, err := snapshot.Restore(a.Store, stateNote, a.ownState(), a.Now())
	switch {
	case err != nil:
		return err
	case r.Declined != "":
		a.Log.Say("WARNING: no directory goes back: %s. Nothing has changed", r.Declined)
		a.NoteSelf(journal.State, "`ota rollback --state` was declined: "+r.Declined)
		return nil
	}
	what := "as they were before the update"
	if r.Undo {
		what = "as they were before `ota rollback --state`"
	}
	text := fmt.Sprintf("%s are %s; what was there is in /run/state/%s until the next update", strings.Join(r.Directories, ", "), what, r.Where)
	a.Log.Say("%s", text)
	if r.Warning != "" {
		a.Log.Say("WARNING: %s", r.Warning)
	}
	a.NoteSelf(journal.State, text)
	return nil
}

// tidySnapshots removes what is left of snapshots, and the snapshot where room gets short.
// It is not worth a boot.
func (a *Agent) tidySnapshots() {
	if !a.hasSnapshots() || a.InMemory {
		return
	}
	said, err := snapshot.Tidy(a.Store, stateNote)
	for _, text := range said {
		a.Log.Say("WARNING: %s", text)
		a.NoteSelf(journal.State, text)
	}
	if err != nil {
		a.Log.Say("snapshots of the state are left as they are: %v", err)
	}
}
