// Package keynote is what a machine notes of its recovery key: whether somebody has shown
// to have written it down, and whether a new one is asked for. The note lies where the
// running system sees it, on the encrypted root partition, and not in the firmware's
// variables: whoever has the machine in hand could ask there for a key to be shown to them.
//
// It refuses to have keys shown for ever: a key on the screen of a machine that the TPM
// opens by itself is there for whoever stands in front of it.
package keynote

import (
	"encoding/json"
	"fmt"

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
	// Keep is the keyslot of the key that counts, plus one, while another one is being
	// added or removed: whatever a cut leaves, all others go.
	Keep int `json:"keep,omitempty"`
}

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
	if n.Format != format || n.Shown < 0 || n.Keep < 0 {
		return Note{}, fmt.Errorf("note of the recovery key: format %d, shown %d times; want format %d", n.Format, n.Shown, format)
	}
	return n, nil
}

// Warning is what the running system says of it; "" for nothing.
func (n Note) Warning() string {
	switch {
	case n.Wanted:
		return "a new recovery key is asked for: the next start makes and shows it"
	case n.Unconfirmed && n.Shown < MaxShown:
		return "nobody has shown to have written the recovery key down: the next start makes and shows a new one (or halogenctl recovery-key new asks for it later)"
	case n.Unconfirmed:
		return "nobody has shown to have written the recovery key down, and without it all data is lost when the TPM does not open this machine: halogenctl recovery-key new, and restart"
	}
	return ""
}
