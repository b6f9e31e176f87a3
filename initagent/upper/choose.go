package upper

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"halogenos.internal/boot/verity"
)

// Where the root partition has what belongs to one system, by the root hash of its
// image: the upper and the work directory of each overlay. [Blessed] has the root hashes
// of those that have run blessed, a line each: the one that did so last is the last.
const (
	Directory = "systems"
	Blessed   = Directory + "/blessed"
)

// Note is the name, in the directory that the running system shares with the boot, of the
// file with the root hash of the system that was blessed last. `ota bless` writes it: a
// system may run for months before the next boot, which may be another one's.
//
// Root of the running system can write anything there. It can bless the system just as
// well, and the note does no more than that: it keeps state from being removed, and only
// where the root partition has it.
const Note = "blessed"

// Unnamed is where an initagent that kept one upper directory for all systems has
// them. It opens them again after a fallback, so they stay as they are for as long as
// there may be one.
const Unnamed = "overlay"

// unfinished ends the name of what is being made or removed. Whatever has it may go.
const unfinished = ".unfinished"

// Of is the directory of a system, relative to the root partition.
func Of(system verity.Root) string { return path.Join(Directory, system.String()) }

var rootHash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Found is what the root partition has.
type Found struct {
	// Systems are those that have a directory, by their root hashes.
	Systems []string
	// Linked are those that have set links in shared directories.
	Linked []string
	// Unnamed: there are upper directories for all systems.
	Unnamed bool
	// Blessed are those that have run blessed, the last one last.
	Blessed []string
	// Noted is what [Note] names and Blessed does not have yet: it has run blessed since
	// Blessed was written. "" for none.
	Noted string
}

// TakeNote sets Noted by the content of [Note]. A system that has no state any more was
// blessed in an earlier life.
func (f *Found) TakeNote(text []byte) {
	for _, s := range Systems(strings.Fields(string(text))) {
		if f.Has(s) && !slices.Contains(f.Blessed, s) {
			f.Noted = s
		}
	}
}

// blessed are those that have run blessed, the last one last.
func (f Found) blessed() []string {
	if f.Noted == "" {
		return f.Blessed
	}
	return append(slices.Clone(f.Blessed), f.Noted)
}

// Current is the blessed system that Blessed has as the last one; "" where it is not known.
func (f Found) Current() string {
	if len(f.Blessed) == 0 {
		return ""
	}
	return f.Blessed[len(f.Blessed)-1]
}

// Proven reports whether a system has run blessed.
func (f Found) Proven(system string) bool { return slices.Contains(f.blessed(), system) }

// Settled are the blessed systems once this one runs, of those that have state.
func (f Found) Settled(own string) []string {
	gone := func(s string) bool { return s == own || !f.Has(s) }
	return append(slices.DeleteFunc(slices.Clone(f.blessed()), gone), own)
}

// Has reports whether a system has state of its own.
func (f Found) Has(system string) bool { return slices.Contains(f.Systems, system) }

// others are those of the systems that are not this one.
func (f Found) others(own string) []string {
	return slices.DeleteFunc(slices.Clone(f.Systems), func(s string) bool { return s == own })
}

// Systems are the root hashes among the names in [Directory].
func Systems(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !rootHash.MatchString(n) })
}

// Other is what the disk says of the other slot.
type Other struct {
	// System is the root hash that the slot's partitions spell; "" where they spell none.
	System string
	// Starts: the ESP has a UKI of that system, so that it may have run last.
	Starts bool
}

// A Source is whose state a system takes over at its first start.
type Source struct {
	System  string // "" where it is not a system's own
	Unnamed bool
	Why     string // for the log of the boot
}

// String says it in a line of the boot's log.
func (s Source) String() string {
	switch {
	case s.Unnamed:
		return "this system takes over the state that was kept for all systems: " + s.Why
	case s.System != "":
		return "this system takes over the state of system " + s.System[:16] + ": " + s.Why
	}
	return "this system takes over no state: " + s.Why
}

// Choose decides whose state a system takes over that has none of its own.
//
// The system in the other slot ran before this one. Where it has no directory of its
// own, its initagent is one that knows only the unnamed ones, and they are newer than
// those of a trial that it gave up. Without a system in the other slot this one was
// installed beside a root partition that was kept.
func Choose(f Found, own string, o Other) Source {
	others := f.others(own)
	has := func(s string) bool { return s != "" && slices.Contains(others, s) }
	last := ""
	for _, s := range f.blessed() {
		if has(s) {
			last = s
		}
	}
	switch {
	case o.Starts && has(o.System):
		return Source{System: o.System, Why: "the system in the other slot ran before"}
	case o.Starts && f.Unnamed:
		return Source{Unnamed: true, Why: "the system in the other slot is of a release that keeps one for all systems"}
	case last != "":
		return Source{System: last, Why: "of those that were blessed it ran last"}
	case f.Unnamed:
		return Source{Unnamed: true, Why: "no system with one of its own was ever blessed"}
	case has(o.System):
		return Source{System: o.System, Why: "the other slot still has that system's image"}
	case len(others) == 1:
		return Source{System: others[0], Why: "no other system has any"}
	case len(others) > 1:
		return Source{Why: "several systems have some, and none of them is known to have run last: it begins as the image has it"}
	}
	return Source{Why: "there is none: it begins as the image has it"}
}

// Stale are the systems whose state is to be made again when they start: those that have
// never run blessed, once one that has does.
func Stale(f Found, own string) []string {
	return slices.DeleteFunc(Leave(f, own), f.Proven)
}

// Leave are the systems whose state goes when the other slot gets another system. Where
// the one that runs has none of its own, there are none: it may be the last there is.
func Leave(f Found, own string) []string {
	if !f.Has(own) {
		return nil
	}
	return append(f.others(own), slices.DeleteFunc(slices.Clone(f.Linked), func(s string) bool { return s == own || f.Has(s) })...)
}
