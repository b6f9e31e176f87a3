// Package journal is the boot journal: what happened to this machine's systems,
// an entry a line, in JSON. initagent and the running system both append to it,
// each with the code here.
//
// It refuses to be needed: a line that is malformed is passed over, an old one
// is dropped when the file has grown too large, and a machine whose journal is
// gone boots as any other. It never forgets which versions failed.
package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

// Name is the journal's file name in the directory that the boot and the running
// system share.
const Name = "journal.jsonl"

const (
	// MaxSize bounds the journal in bytes. What is larger is read from its end.
	MaxSize = 256 << 10
	// maxLine bounds a line in bytes, its end included.
	maxLine = 4 << 10
	// maxReason bounds a reason in bytes.
	maxReason = 1 << 10
	// maxBootID bounds a boot ID in bytes.
	maxBootID = 64
)

// Kind is what an entry is about.
type Kind string

// The kinds of entries.
const (
	Boot      Kind = "boot"      // a system is handed over to; Reason says why this one
	Fetched   Kind = "fetched"   // a release is in the other slot, complete and verified
	Staged    Kind = "staged"    // it gets its tries
	Refused   Kind = "refused"   // it was not staged
	Blessed   Kind = "blessed"   // a trial has proven itself
	Unhealthy Kind = "unhealthy" // the running system's own check failed
	Condemned Kind = "condemned" // a system has lost its tries for what initagent saw
	NoRoom    Kind = "no-room"   // the root partition has no room for what is a trial's own
	Failed    Kind = "failed"    // a version that is not taken again
	Retry     Kind = "retry"     // a trial that was only interrupted gets its tries again
	Rollback  Kind = "rollback"  // somebody gave the running system up
	Forgiven  Kind = "forgiven"  // somebody wants a version tried again that is not taken any more
	Floor     Kind = "floor"     // the lowest epoch that may run has risen
	Healed    Kind = "healed"    // the ESP, the partition table, or a file of initagent's was made whole
	Repaired  Kind = "repaired"  // blocks of a slot were
	Recovery  Kind = "recovery"  // the recovery console opened
	State     Kind = "state"     // directories went back to what they held before an update, or a snapshot of them is gone
	Accepted  Kind = "accepted"  // somebody with the recovery key accepted what has changed on the machine
	LeftOut   Kind = "left-out"  // an extension that is enabled, or may be, is not part of the system
	Grown     Kind = "grown"     // the slots were made larger; with a reason, they were not
	NewKey    Kind = "new-key"   // somebody at the machine has had a new recovery key shown, or confirmed it
)

// An Entry is one line. What does not apply is left out.
type Entry struct {
	Time    time.Time        `json:"time"`           // of a clock that may be off
	Boot    string           `json:"boot,omitempty"` // the kernel's boot ID
	Kind    Kind             `json:"kind"`
	Version contract.Version `json:"version,omitempty"`
	Slot    layout.Slot      `json:"slot,omitempty"`
	Trial   bool             `json:"trial,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	// Watchdog, in a boot entry: the hardware watchdog ended the boot before.
	Watchdog bool `json:"watchdog,omitempty"`
}

// Parse reads a journal, oldest entry first. Lines that are torn, too long or
// not an entry are passed over, and so is what lies before the last MaxSize
// bytes.
func Parse(text []byte) []Entry {
	var entries []Entry
	for _, l := range lines(text) {
		if l.known {
			entries = append(entries, l.entry)
		}
	}
	return entries
}

// A line is one of the journal's, as it is and as it is read.
type line struct {
	text  []byte // without its end
	entry Entry
	known bool
}

// lines reads the end of a journal. Empty lines are left out, and lines too long
// to be ours.
func lines(text []byte) []line {
	if len(text) > MaxSize {
		text = text[len(text)-MaxSize:]
		_, text, _ = bytes.Cut(text, []byte("\n")) // the first is not whole
	}
	var out []line
	for raw := range bytes.SplitSeq(text, []byte("\n")) {
		if len(raw) == 0 || len(raw) >= maxLine {
			continue
		}
		l := line{text: raw}
		l.entry, l.known = parseLine(raw)
		out = append(out, l)
	}
	return out
}

// parseLine ignores fields it does not know: the system in the other slot may
// write more of them.
func parseLine(raw []byte) (Entry, bool) {
	var e Entry
	if err := json.Unmarshal(raw, &e); err != nil || e.Kind == "" {
		return Entry{}, false
	}
	e.Kind, e.Boot, e.Reason = Kind(clean(string(e.Kind), maxBootID)), clean(e.Boot, maxBootID), clean(e.Reason, maxReason)
	return e, true
}

// clean makes text fit for one line of a terminal, of at most limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return '_'
		}
		return r
	}, s))
}

// encode returns the line of an entry, its end included.
func (e Entry) encode() ([]byte, error) {
	e.Boot, e.Reason = clean(e.Boot, maxBootID), clean(e.Reason, maxReason)
	e.Time = e.Time.UTC().Truncate(time.Second)
	if y := e.Time.Year(); y < 1970 || y > 9999 { // a clock that JSON cannot write
		e.Time = time.Unix(0, 0).UTC()
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // which would make a line six times as long
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode journal entry: %w", err)
	}
	if out.Len() > maxLine {
		return nil, fmt.Errorf("journal entry has %d bytes, at most %d fit a line", out.Len(), maxLine)
	}
	return out.Bytes(), nil
}

// String returns an entry as a line for people.
func (e Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-9s", e.Time.UTC().Format("2006-01-02 15:04:05"), e.Kind)
	if e.Version != 0 {
		fmt.Fprintf(&b, " version %s", e.Version)
	}
	if e.Slot.Valid() {
		fmt.Fprintf(&b, " slot %s", e.Slot)
	}
	if e.Trial {
		b.WriteString(" (trial)")
	}
	if e.Watchdog {
		b.WriteString(" (the watchdog ended the boot before)")
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	return b.String()
}

// Append returns a journal with one more entry. A journal that grows too large
// loses its oldest lines, down to half of MaxSize, but those that Failed and
// Judge cannot do without, and the last ones of its history.
func Append(old []byte, e Entry) ([]byte, error) {
	fresh, err := e.encode()
	if err != nil {
		return nil, err
	}
	if len(old)+1+len(fresh) > MaxSize {
		old = compact(old)
	}
	out := bytes.Clone(old)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n') // the last line was torn
	}
	return append(out, fresh...), nil
}

// compact returns the lines worth keeping. What failed, and what had its second
// round, is kept in short, however old it is; of the rest the newest lines, and
// before them what History tells of, in short.
//
// The history comes first: what it says of a version is older than what is kept of
// those that failed, and than the newest lines.
func compact(old []byte) []byte {
	all := lines(old)
	const room, pinnedRoom, historyRoom = MaxSize / 2, MaxSize / 4, MaxSize / 8
	from, size := len(all), 0
	for from > 0 && size+len(all[from-1].text)+1 <= room {
		from--
		size += len(all[from].text) + 1
	}
	kept := map[string]bool{}
	for _, l := range all[from:] {
		if l.known {
			kept[pinKey(l.entry)] = true
		}
	}
	var failed []byte
	short := map[string]bool{}
	for _, e := range pinned(entriesOf(all)) {
		if kept[pinKey(e)] {
			continue
		}
		text, err := shortened(e).encode()
		if err != nil || len(failed)+len(text) > pinnedRoom {
			continue
		}
		failed = append(failed, text...)
		short[pinKey(e)] = true
	}
	history := slices.DeleteFunc(History(entriesOf(all[:from])), func(e Entry) bool { return short[pinKey(e)] })
	out := bytes.NewBuffer(append(inShort(history, historyRoom), failed...))
	for _, l := range all[from:] {
		out.Write(l.text)
		out.WriteByte('\n')
	}
	return out.Bytes()
}

func entriesOf(all []line) []Entry {
	var entries []Entry
	for _, l := range all {
		if l.known {
			entries = append(entries, l.entry)
		}
	}
	return entries
}

// inShort returns the lines of the last entries that fit into so many bytes. None is left
// out in between: a version that failed and was forgiven would have failed again.
func inShort(entries []Entry, room int) []byte {
	var kept [][]byte
	for _, e := range slices.Backward(entries) {
		text, err := shortened(e).encode()
		if err != nil || len(text) > room {
			break
		}
		room -= len(text)
		kept = append(kept, text)
	}
	slices.Reverse(kept)
	return bytes.Join(kept, nil)
}

// History returns the entries that tell what became of this machine's systems: all but
// the starts of a system that ran before, too. A start of another one than before, a
// trial's and one that the watchdog caused stay.
func History(entries []Entry) []Entry {
	var out []Entry
	var ran contract.Version
	for _, e := range entries {
		if e.Kind == Boot {
			usual := e.Version == ran && !e.Trial && !e.Watchdog
			ran = e.Version
			if usual {
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func pinKey(e Entry) string { return string(e.Kind) + " " + e.Version.String() }

// shortened is an entry with a reason of a few words.
func shortened(e Entry) Entry {
	e.Reason = clean(e.Reason, 120)
	return e
}
