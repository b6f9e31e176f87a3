// Package keynote is what a machine notes of its recovery key: whether somebody has shown
// to have written it down, and whether a new one is asked for. The note lies where the
// running system sees it, on the encrypted root partition, and not in the firmware's
// variables: anyone who has the machine in hand could ask there for a key to be shown to them.
//
// It refuses to have keys shown for ever: a key on the screen of a machine that the TPM
// opens by itself is there for anyone who stands in front of it.
package keynote

import (
	"encoding/json"
	"fmt"
	"time"

	"halogenos.internal/boot/strictjson"
)

// Name is the note's, in the directory that the running system shares with the boot.
const Name = "recovery-key.json"

// MaxSize bounds the note in bytes.
const MaxSize = 1 << 10

// MaxShown is at how many starts a key is shown that nobody has asked for.
const MaxShown = 3

const format = 1

// A Note says what is to be done about the recovery key. The zero Note, and none at all,
// say that there is nothing.
type Note struct {
	Format int `json:"format"`
	// Unconfirmed: nobody has typed back what was shown.
	Unconfirmed bool `json:"unconfirmed,omitempty"`
	// Shown is at how many starts a key was shown and not confirmed.
	Shown int `json:"shown,omitempty"`
	// Wanted: the running system has asked for a new key.
	Wanted bool `json:"wanted,omitempty"`
	// Keep names the key that counts while another one is being added or removed: whatever
	// a cut leaves, all others go. Its value is rootlock.Recovery.ID's.
	Keep string `json:"keep,omitempty"`
	// Drop names a key that goes unless it is confirmed, where it was added to several of
	// which nobody knows the one that counts.
	Drop string `json:"drop,omitempty"`
	// Void: a key was shown after the first one, perhaps written down, and never confirmed.
	// It opens nothing.
	Void bool `json:"void,omitempty"`
	// Replaced is the day on which somebody at the machine had the key replaced without the
	// one before ([Day]).
	Replaced string `json:"replaced,omitempty"`
}

// day is the form of Note.Replaced, and said how long it is told of.
const (
	day  = "2006-01-02"
	said = 30 * 24 * time.Hour
)

// Day is a time as Note.Replaced has it.
func Day(t time.Time) string { return t.UTC().Format(day) }

// Nothing reports whether the note has nothing to say, so that it can go.
func (n Note) Nothing() bool { n.Format, n.Shown = 0, 0; return n == Note{} }

// Due reports whether this start is to make a new key and show it.
func (n Note) Due() bool { return n.Wanted || n.Unconfirmed && n.Shown < MaxShown }

// Encode returns the file.
func (n Note) Encode() ([]byte, error) {
	n.Format = format
	text, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("note of the recovery key: %w", err)
	}
	return append(text, '\n'), nil
}

// Parse reads the file. Root of the running system can write it: it gains a key on the
// screen of the next start, where it is not.
func Parse(text []byte) (Note, error) {
	var n Note
	if len(text) > MaxSize {
		return n, fmt.Errorf("note of the recovery key: %d bytes, more than %d", len(text), MaxSize)
	}
	if err := strictjson.Decode(text, &n); err != nil {
		return Note{}, fmt.Errorf("note of the recovery key: %w", err)
	}
	if n.Format != format || n.Shown < 0 {
		return Note{}, fmt.Errorf("note of the recovery key: format %d, shown %d times; want format %d", n.Format, n.Shown, format)
	}
	if _, err := time.Parse(day, n.Replaced); n.Replaced != "" && err != nil {
		return Note{}, fmt.Errorf("note of the recovery key: %w", err)
	}
	return n, nil
}

// Warning is what the running system says of it at a time; "" for nothing.
func (n Note) Warning(now time.Time) string {
	replaced, err := time.Parse(day, n.Replaced)
	switch {
	case n.Wanted:
		return "a new recovery key is asked for: the next start makes and shows it"
	case n.Void:
		return "the recovery key that was shown last was not confirmed, and opens nothing: throw away what was written down of it. The one before is in force; if nobody has that, halogenctl recovery-key new, and restart"
	case n.Unconfirmed:
		return "nobody has shown to have written the recovery key down, and without it all data is lost when the TPM does not open this machine: halogenctl recovery-key new, and restart"
	case err == nil && now.Sub(replaced) < said:
		return "the recovery key was replaced on " + n.Replaced + ", by somebody at the machine who did not need the one before. If that was not you, replace it (halogenctl recovery-key new), and use halogenctl reseal --new-secret --new-keys: see recovery-key(8)"
	}
	return ""
}
