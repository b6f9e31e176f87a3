package pcr

import (
	"bytes"
	"fmt"
	"strings"

	"halogenos.internal/boot/secureboot"
)

// Change is an event that one log has and the other has not, or has otherwise.
// At least one of both is there.
type Change struct {
	Was, Is *Event
}

// Difference is what two logs say differently about one register.
type Difference struct {
	PCR     int
	Changes []Change // in the order of the logs
}

// maxCompared bounds the work of finding out which events two logs have in
// common: its square. Logs have some tens of events a register.
const maxCompared = 512

// Diff tells which registers of the SHA-256 bank two boots leave differently,
// and which events made the difference. It goes by what was measured: two
// events of other data and equal digest are equal.
func Diff(lastGood, now *Log) []Difference {
	var differences []Difference
	for n := range registers {
		if changes := diffEvents(lastGood.measured(n), now.measured(n)); len(changes) > 0 {
			differences = append(differences, Difference{PCR: n, Changes: changes})
		}
	}
	return differences
}

// measured returns the events that extended a register.
func (l *Log) measured(register int) []Event {
	var events []Event
	for _, e := range l.Events {
		if e.PCR == register && e.Type != EventNoAction {
			events = append(events, e)
		}
	}
	return events
}

func same(a, b Event) bool {
	x, hasX := a.Digest(SHA256)
	y, hasY := b.Digest(SHA256)
	return hasX && hasY && bytes.Equal(x, y)
}

func diffEvents(was, is []Event) []Change {
	for len(was) > 0 && len(is) > 0 && same(was[0], is[0]) {
		was, is = was[1:], is[1:]
	}
	for len(was) > 0 && len(is) > 0 && same(was[len(was)-1], is[len(is)-1]) {
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	if len(was) > maxCompared || len(is) > maxCompared {
		return pair(was, is)
	}
	return hunks(was, is, commonLengths(was, is))
}

// commonLengths has at [i][j] the length of the longest common subsequence of
// was[i:] and is[j:].
func commonLengths(was, is []Event) [][]int {
	lengths := make([][]int, len(was)+1)
	for i := range lengths {
		lengths[i] = make([]int, len(is)+1)
	}
	for i := len(was) - 1; i >= 0; i-- {
		for j := len(is) - 1; j >= 0; j-- {
			if same(was[i], is[j]) {
				lengths[i][j] = lengths[i+1][j+1] + 1
			} else {
				lengths[i][j] = max(lengths[i+1][j], lengths[i][j+1])
			}
		}
	}
	return lengths
}

// hunks walks along the common events and pairs up what lies between.
func hunks(was, is []Event, lengths [][]int) []Change {
	var changes []Change
	var gone, come []Event
	i, j := 0, 0
	for i < len(was) || j < len(is) {
		switch {
		case i < len(was) && j < len(is) && same(was[i], is[j]):
			changes = append(changes, pair(gone, come)...)
			gone, come = nil, nil
			i, j = i+1, j+1
		case j == len(is) || i < len(was) && lengths[i+1][j] >= lengths[i][j+1]:
			gone = append(gone, was[i])
			i++
		default:
			come = append(come, is[j])
			j++
		}
	}
	return append(changes, pair(gone, come)...)
}

// pair takes an event for the changed form of another when both are about the
// same thing; the rest went or came.
func pair(gone, come []Event) []Change {
	var changes []Change
	taken := make([]bool, len(come))
	for i := range gone {
		change := Change{Was: &gone[i]}
		for j := range come {
			if !taken[j] && gone[i].subject() == come[j].subject() {
				taken[j] = true
				change.Is = &come[j]
				break
			}
		}
		changes = append(changes, change)
	}
	for j := range come {
		if !taken[j] {
			changes = append(changes, Change{Is: &come[j]})
		}
	}
	return changes
}

// subject is what an event is about, apart from the value measured.
func (e Event) subject() string {
	subject := fmt.Sprintf("%#x ", uint32(e.Type))
	switch e.Type {
	case EventVariableConfig, EventVariableBoot, EventVariableBoot2:
		if v, err := parseVariable(e.Data); err == nil {
			return subject + v.name
		}
	case EventBootApplication, EventBootDriver, EventRuntimeDriver:
		return subject + e.imagePath()
	case EventIPL:
		return subject + e.text()
	}
	return subject
}

// String tells a person what changed.
func (c Change) String() string {
	switch {
	case c.Was == nil:
		return "new: " + c.Is.Describe()
	case c.Is == nil:
		return "gone: " + c.Was.Describe()
	}
	if text := describeDatabaseChange(*c.Was, *c.Is); text != "" {
		return text
	}
	was, is := c.Was.Describe(), c.Is.Describe()
	if was == is {
		return "changed: " + is
	}
	return fmt.Sprintf("was: %s; is: %s", was, is)
}

// describeDatabaseChange names what was added to and taken from a signature
// database; nothing for other events.
func describeDatabaseChange(was, is Event) string {
	if was.Type != EventVariableConfig || is.Type != EventVariableConfig {
		return ""
	}
	before, err1 := parseVariable(was.Data)
	after, err2 := parseVariable(is.Data)
	if err1 != nil || err2 != nil || !before.isDatabase() || before.name != after.name {
		return ""
	}
	old, err1 := secureboot.ParseDatabase(before.data)
	new, err2 := secureboot.ParseDatabase(after.data)
	if err1 != nil || err2 != nil {
		return ""
	}
	var parts []string
	if removed := old.Without(new); len(removed) > 0 {
		parts = append(parts, "lost "+describeEntries(removed))
	}
	if added := new.Without(old); len(added) > 0 {
		parts = append(parts, "gained "+describeEntries(added))
	}
	if len(parts) == 0 {
		return fmt.Sprintf("%s holds the same signatures, but not in the same way: %s, now %s (their order, one that is there twice, or how they are grouped)",
			after.name, howMany(len(old)), howMany(len(new)))
	}
	return after.name + " " + strings.Join(parts, " and ")
}

// howMany is a number of entries of a signature database.
func howMany(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// String tells a person what the register is about, and what changed, a line
// for each.
func (d Difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "PCR %d (%s) differs:", d.PCR, registerName(d.PCR))
	for _, c := range d.Changes {
		b.WriteString("\n  " + c.String())
	}
	return b.String()
}

func registerName(n int) string {
	switch n {
	case 0:
		return "firmware"
	case 1:
		return "firmware settings"
	case 2:
		return "option ROMs"
	case 3:
		return "settings of option ROMs"
	case 4:
		return "boot manager and EFI programs"
	case 5:
		return "partition table, boot manager's configuration"
	case 7:
		return "Secure Boot"
	case 8, 9:
		return "boot loader"
	case 11:
		return "system's kernel image"
	case 12:
		return "command line, credentials and addons from outside the image"
	case 13:
		return "system extensions"
	case 14:
		return "shim's keys"
	case 15:
		return "machine and volume key"
	}
	return "other"
}
