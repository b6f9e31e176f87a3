package ownstate

import (
	"fmt"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/snapshot"
)

// RestoreNote is what `ota rollback --state` leaves.
const RestoreNote = rootpart.Shared + "/" + snapshot.NoteName

// hasSnapshots reports whether the root partition's file system can have any. Where it
// cannot, nothing is looked for, and whatever asks for one is left alone.
func hasSnapshots(h *host.Host) bool { return h.Contract.RootFileSystem == "btrfs" }

// RestoreAsked reports whether directories are to go back.
func RestoreAsked(h *host.Host) bool { return hasSnapshots(h) && snapshot.Asked(h.Store, RestoreNote) }

// Snapshot takes one of the directories that all systems share, before a release is
// tried, and returns what the boot journal is to say of it; "" where there can be none.
// The release is staged all the same without one.
func Snapshot(h *host.Host, v contract.Version) string {
	if !hasSnapshots(h) {
		return ""
	}
	entries, err := Entries(h)
	var r snapshot.Record
	if err == nil {
		var said []string
		r, said, err = snapshot.Take(h.Store, snapshot.Record{
			Taken: h.Now(), For: v,
			System: snapshot.System{Version: h.Contract.Version, Slot: h.State.Booted, Root: Own(h)},
		}, entries, func(r snapshot.Record) bool { return tried(h, r) })
		sayState(h, said)
	}
	why := r.Missing
	if err != nil {
		why = strings.TrimPrefix(why+"; "+err.Error(), "; ")
	}
	if why != "" {
		h.Log.Say("WARNING: version %s is tried without a snapshot of the state, so that `ota rollback --state` will have nothing to go back to: %s", v, why)
		return "without a snapshot of the state: " + why
	}
	return "with a snapshot of " + strings.Join(r.Directories, ", ")
}

// tried reports whether the release was started that a snapshot was taken for. The boot
// that has taken it tells of the staging in the journal, and a start does. Where there is no
// journal it may have been.
func tried(h *host.Host, r snapshot.Record) bool {
	entries := h.Journal.Entries()
	for _, e := range entries {
		if e.Version == r.For && (e.Kind == journal.Staged || e.Kind == journal.Boot) && !e.Time.Before(r.Taken) {
			return true
		}
	}
	return len(entries) == 0
}

// Restore puts the directories back that `ota rollback --state` is about. See
// snapshot.Restore for what a cut leaves.
func Restore(h *host.Host) error {
	r, err := snapshot.Restore(h.Store, RestoreNote, snapshot.System{Version: h.Contract.Version, Root: Own(h)}, h.Now())
	switch {
	case err != nil:
		return err
	case r.Declined != "":
		h.Log.Say("WARNING: no directory goes back: %s. Nothing has changed", r.Declined)
		h.NoteSelf(journal.State, "`ota rollback --state` was declined: "+r.Declined)
		return nil
	}
	what := "as they were before the update"
	if record, err := snapshot.ReadRecord(h.Store); err == nil && record != nil {
		what += ", at " + record.Taken.Format(time.RFC3339)
	}
	if r.Undo {
		what = "as they were before `ota rollback --state`"
	}
	text := fmt.Sprintf("%s are %s; what was there is in /run/state/%s", strings.Join(r.Directories, ", "), what, r.Where)
	h.Log.Say("%s", text)
	if r.Warning != "" {
		h.Log.Say("WARNING: %s", r.Warning)
	}
	h.NoteSelf(journal.State, text)
	return nil
}

// TidySnapshots removes what is left of snapshots, and the snapshot where room gets short.
// It is not worth a boot.
func TidySnapshots(h *host.Host) {
	if !hasSnapshots(h) || h.InMemory {
		return
	}
	out, err := snapshot.Tidy(h.Store, RestoreNote, snapshot.Boot{System: Own(h), Trial: h.State.Trial})
	sayState(h, out.Gone)
	for _, text := range out.Tight {
		h.Log.Say("WARNING: %s", text)
	}
	if err != nil {
		h.Log.Say("WARNING: snapshots of the state are left as they are: %v", err)
	}
}

// sayState says what has become of something that somebody may look for.
func sayState(h *host.Host, said []string) {
	for _, text := range said {
		h.Log.Say("WARNING: %s", text)
		h.NoteSelf(journal.State, text)
	}
}
