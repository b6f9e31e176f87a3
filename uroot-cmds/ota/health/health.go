// Package health says which services that failed at a system's start count against
// its trial: those that did not fail before the update, and that nobody has excused.
//
// It refuses to judge by what is not known. Where nothing tells what failed before,
// as after an update from a release without this, nothing counts.
package health

import (
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/healthignore"
)

// Bounds of what is read and kept.
const (
	maxFailed = 256 // services
	maxShown  = 8   // services that a message names
)

// A Record is what failed at the last start of a system that is not a trial, or at that of
// a trial which was blessed: the system before the next update, and what that one is
// compared with.
type Record struct {
	Format  int              `json:"format"`
	Version contract.Version `json:"version"`
	// Manager is whose services they are; another's have other names.
	Manager string   `json:"manager"`
	Failed  []string `json:"failed"`
	// Present is what of a desktop was there: the display manager whose display server
	// has answered, the network service. Only what was there can be missed after an update.
	Present []string `json:"present,omitempty"`
}

// RecordFormat is the only format of a Record.
const RecordFormat = 1

// RecordName is the file's name in the directory that both systems share.
const RecordName = "failed-services.json"

// NewRecord returns the record of a start: what failed, and what of a desktop was there.
func NewRecord(v contract.Version, manager string, failed, present []string) *Record {
	return &Record{Format: RecordFormat, Version: v, Manager: manager, Failed: clip(failed), Present: clip(present)}
}

// Of reports whether a record can be compared with what a service manager says.
func (r *Record) Of(manager string) bool {
	return r.Format == RecordFormat && r.Version != 0 && r.Manager == manager && len(r.Failed) <= maxFailed
}

// clip bounds a list, which it sorts.
func clip(names []string) []string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	return names[:min(len(names), maxFailed)]
}

// A Verdict divides what failed at a start.
type Verdict struct {
	// Counted count against a trial.
	Counted []string `json:"counted,omitempty"`
	// Before failed before the update, too.
	Before []string `json:"failed_before,omitempty"`
	// Excused are named in a health-ignore, or mounts of a network.
	Excused []string `json:"excused,omitempty"`
	// Unknown do not count for want of a record.
	Unknown []string `json:"unknown_before,omitempty"`
}

// Judge divides what failed. Without a record nothing counts. An instance is compared
// by its template: its own name may be another at each start.
func Judge(start *Start, before *Record, ignore healthignore.List) Verdict {
	failed := map[string]bool{}
	if before != nil {
		for _, name := range before.Failed {
			failed[template(name)] = true
		}
	}
	var v Verdict
	for _, name := range clip(start.Failed) {
		to := &v.Counted
		switch {
		case ignore.Has(name) || slices.Contains(start.Network, name):
			to = &v.Excused
		case before == nil || slices.Contains(start.Missed, name) && !slices.Contains(before.Present, name) && !failed[template(name)]:
			to = &v.Unknown
		case failed[template(name)]:
			to = &v.Before
		}
		*to = append(*to, name)
	}
	return v
}

// template is the name of the template of an instance, and of another unit its own
// (systemd.unit(5)).
func template(name string) string {
	before, instance, ok := strings.Cut(name, "@")
	if !ok {
		return name
	}
	return before + "@" + instance[strings.LastIndex(instance, ".")+1:]
}

// Names lists services for people, as many as fit a message.
func Names(all []string) string {
	shown := all[:min(len(all), maxShown)]
	text := strings.Join(shown, ", ")
	if more := len(all) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
