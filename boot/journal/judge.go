package journal

import (
	"cmp"
	"fmt"
	"slices"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
)

// Failures returns the versions that are not taken again, and why. A version that
// was blessed afterwards, since somebody started it by hand and it proved
// itself, is none of them.
func Failures(entries []Entry) map[contract.Version]string {
	failed := map[contract.Version]string{}
	for _, e := range entries {
		switch {
		case e.Version == 0:
		case e.Kind == Failed:
			failed[e.Version] = e.Reason
		case e.Kind == Blessed, e.Kind == Forgiven:
			delete(failed, e.Version)
		}
	}
	return failed
}

// pinned returns, greatest version first, the entries that compaction keeps.
// Should there ever be too many of them, the least versions go: those are the
// ones that no release server offers any more.
func pinned(entries []Entry) []Entry {
	failures := Failures(entries)
	last := map[string]Entry{}
	for _, e := range entries {
		if _, failed := failures[e.Version]; e.Kind == Failed && failed || e.Kind == Retry && e.Version != 0 {
			last[pinKey(e)] = e
		}
	}
	out := make([]Entry, 0, len(last))
	for _, e := range last {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}

// Judge says what is held of a version whose UKI has used up its tries, and why.
//
// It is Unfit unless the journal shows that it was handed over to in this round
// of tries, and nothing says that it failed. What ended before that wrote
// nothing, so it counts as failed. A trial that was only Interrupted gets one
// more round, never two: so this ends, however often the power is cut. That a trial found
// no room says nothing of the version: it has no tries left, and may be fetched again.
func Judge(entries []Entry, v contract.Version) (bootflow.Verdict, string) {
	if _, failed := Failures(entries)[v]; failed {
		return bootflow.NoTrial, "it was judged before"
	}
	round := since(entries, v)
	handed, retried, noRoom := false, false, false
	for _, e := range round {
		switch {
		case e.Watchdog:
			// All boots of a round are the trial's: the boot manager prefers it.
			return bootflow.Unfit, "the watchdog ended it"
		case e.Version != v:
		case e.Kind == Condemned, e.Kind == Unhealthy, e.Kind == Rollback:
			return bootflow.Unfit, fmt.Sprintf("%s: %s", e.Kind, e.Reason)
		case e.Kind == Blessed, e.Kind == Boot && !e.Trial:
			return bootflow.NoTrial, "it was blessed once"
		case e.Kind == Retry:
			handed, retried, noRoom = false, true, false
		case e.Kind == NoRoom:
			noRoom = true
		case e.Kind == Boot:
			handed = true
		}
	}
	switch {
	case !handed && noRoom:
		return bootflow.NoTrial, "the root partition had no room for it"
	case !handed:
		return bootflow.Unfit, "it never reached the system"
	case retried:
		return bootflow.Unfit, "it was not blessed in two rounds of tries"
	}
	return bootflow.Interrupted, "it reached the system, and nothing says that it failed"
}

// since returns the entries after a version was staged last: all of them where
// the journal has forgotten.
func since(entries []Entry, v contract.Version) []Entry {
	for i, e := range slices.Backward(entries) {
		if e.Kind == Staged && e.Version == v {
			return entries[i+1:]
		}
	}
	return entries
}
