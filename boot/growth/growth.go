// Package growth is what the running system and the boot leave for each other about larger
// slots: that they are asked for, and what came of it. Both files lie in the directory that
// the two share.
//
// It refuses to say that a machine may grow: root of the running system can write both files,
// and the boot checks everything.
package growth

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/strictjson"
)

// Names in the shared directory (statefiles.OnRoot).
const (
	RequestName = "grow.json"
	OutcomeName = "growth.json"
)

// MaxSize bounds either file in bytes.
const MaxSize = 4 << 10

// MaxTries is how often the boot begins what is asked for. One that goes down each time would
// otherwise do so for ever.
const MaxTries = 3

// Reserve is what the root partition's file system has to have left, in bytes, for the running
// system to go on.
const Reserve = 64 << 20

const format = 1

// maxReason bounds an outcome's reason in bytes: a byte takes six in JSON at most.
const maxReason = 512

// Who has asked.
const (
	ByOwner  = "owner"
	ByPolicy = "policy"
)

// A Request asks the next boot for slots of a size.
type Request struct {
	Format   int    `json:"format"`
	SlotSize int64  `json:"slot_size"` // bytes
	By       string `json:"by"`
	// Tries is how often a boot has begun it.
	Tries int `json:"tries"`
}

// An Outcome says what came of the last request.
type Outcome struct {
	Format   int   `json:"format"`
	SlotSize int64 `json:"slot_size"` // bytes
	Done     bool  `json:"done"`
	// Reason is why it was not done.
	Reason string `json:"reason"`
	// Missing is how many bytes the root partition has too little; 0 where that is not the
	// reason, or is not known.
	Missing int64     `json:"missing"`
	When    time.Time `json:"when"` // by a clock that may be off
}

func (r *Request) validate() error {
	if r.Format != format || r.SlotSize <= 0 || r.SlotSize > layout.MaxSlot || r.SlotSize%layout.Align != 0 || r.By != ByOwner && r.By != ByPolicy || r.Tries < 0 {
		return fmt.Errorf("format %d, slots of %d bytes, asked for by %q, %d tries", r.Format, r.SlotSize, r.By, r.Tries)
	}
	return nil
}

func (o *Outcome) validate() error {
	if o.Format != format || o.SlotSize < 0 || o.Missing < 0 || o.Done != (o.Reason == "") {
		return fmt.Errorf("format %d, slots of %d bytes, done %t for the reason %q, %d bytes are missing", o.Format, o.SlotSize, o.Done, o.Reason, o.Missing)
	}
	return nil
}

// Encode returns the file.
func (r Request) Encode() ([]byte, error) {
	r.Format = format
	return encode(&r, r.validate())
}

// Encode returns the file. Of a reason that is longer than maxReason it has the beginning: a
// program of the system image may have said all of it, and a file over MaxSize has no reader.
func (o Outcome) Encode() ([]byte, error) {
	o.Format = format
	if len(o.Reason) > maxReason {
		o.Reason = strings.ToValidUTF8(o.Reason[:maxReason], "") + " ..."
	}
	return encode(&o, o.validate())
}

func encode(v any, invalid error) ([]byte, error) {
	text, err := json.Marshal(v)
	if err == nil {
		err = invalid
	}
	if err != nil {
		return nil, fmt.Errorf("note of larger slots: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseRequest reads the file.
func ParseRequest(text []byte) (*Request, error) {
	r := new(Request)
	if err := parse(text, r); err != nil {
		return nil, err
	}
	return r, nil
}

// ParseOutcome reads the file.
func ParseOutcome(text []byte) (*Outcome, error) {
	o := new(Outcome)
	if err := parse(text, o); err != nil {
		return nil, err
	}
	return o, nil
}

func parse(text []byte, v interface{ validate() error }) error {
	if len(text) > MaxSize {
		return fmt.Errorf("note of larger slots: %d bytes, at most %d", len(text), MaxSize)
	}
	err := strictjson.Decode(text, v)
	if err == nil {
		err = v.validate()
	}
	if err != nil {
		return fmt.Errorf("note of larger slots: %w", err)
	}
	return nil
}
