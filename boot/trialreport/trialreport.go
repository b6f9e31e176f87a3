// Package trialreport is what a machine tells its distributor of one update, where its
// owner allows it: which version was tried, what became of it, and on what kind of
// hardware. It makes the distributor stop a release that fails for others.
//
// It refuses to name a machine: there is no identifier in it, no text that a program or a
// person wrote there, and no time but the day. Nor is it signed: anyone who can write to the
// collection can forge reports, and a reader must know that.
package trialreport

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/strictjson"
)

// Format is the number of this format; a report with another is refused.
const Format = 1

const (
	// MaxSize bounds a report in bytes.
	MaxSize = 4 << 10
	// maxText bounds each text in bytes.
	maxText = 64
	// maxSeconds bounds Seconds: a trial that takes longer waited for a person.
	maxSeconds = 24 * 60 * 60
	// day is how a day is written.
	day = "2006-01-02"
	// Suffix ends a report's file name.
	Suffix = ".json"
)

// A Result is what became of a trial.
type Result string

// The results of a trial.
const (
	Kept   Result = "kept"   // it was blessed
	Failed Result = "failed" // the machine went back
)

// A Cause is the kind of a failure.
type Cause string

// The causes of a failure.
const (
	Unhealthy Cause = "unhealthy" // the system's own check failed
	Condemned Cause = "condemned" // initagent could not open or start it
	NoRoom    Cause = "no-room"   // the root partition had no room for it
	Hang      Cause = "hang"      // the watchdog ended it
	GivenUp   Cause = "given-up"  // somebody went back
	Ended     Cause = "ended"     // it ended before anything said that it works
)

func (c Cause) known() bool {
	switch c {
	case Unhealthy, Condemned, NoRoom, Hang, GivenUp, Ended:
		return true
	}
	return false
}

// A Report is what is told of one trial.
type Report struct {
	Format  int              `json:"format"`
	ImageID string           `json:"image_id"`
	Arch    string           `json:"arch"`
	Version contract.Version `json:"version"`
	// Channel is what the machine follows: what fails on beta is not counted on stable.
	Channel manifest.Channel `json:"channel"`
	// From is the version that ran before; 0 where that is not known.
	From   contract.Version `json:"from,omitempty"`
	Result Result           `json:"result"`
	Cause  Cause            `json:"cause,omitempty"` // of a failure
	// Vendor and Product are the machine's make (SMBIOS 3.7, type 1).
	Vendor  string `json:"vendor,omitempty"`
	Product string `json:"product,omitempty"`
	// Day is that of the trial's end, in UTC, by the machine's clock.
	Day string `json:"day"`
	// Seconds are those from the trial's first start to its end; 0 is not known.
	Seconds int64 `json:"seconds,omitempty"`
}

// Parse reads a report.
func Parse(text []byte) (*Report, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("report has %d bytes, more than %d", len(text), MaxSize)
	}
	var r Report
	if err := strictjson.Decode(text, &r); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return &r, nil
}

// Encode returns the report's text, which is all that is sent.
func (r *Report) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	return append(text, '\n'), err
}

// Validate reports the first thing that is wrong.
func (r *Report) Validate() error {
	_, dayErr := time.Parse(day, r.Day)
	_, channelErr := manifest.ParseChannel(string(r.Channel))
	switch {
	case r.Format != Format:
		return fmt.Errorf("format %d, want %d", r.Format, Format)
	case !word(r.ImageID) || !word(r.Arch):
		return fmt.Errorf("of image %.80q for %.80q", r.ImageID, r.Arch)
	case r.Version == 0:
		return errors.New("it does not say of which version it is")
	case channelErr != nil:
		return channelErr
	case r.Result != Kept && r.Result != Failed:
		return fmt.Errorf("result %.80q, want kept or failed", r.Result)
	case (r.Result == Failed) != r.Cause.known() || r.Result == Kept && r.Cause != "":
		return fmt.Errorf("cause %.80q of the result %s", r.Cause, r.Result)
	case r.Vendor != Name(r.Vendor) || r.Product != Name(r.Product):
		return errors.New("the machine's make is not as this program writes it")
	case dayErr != nil:
		return fmt.Errorf("day %.80q, want YYYY-MM-DD", r.Day)
	case r.Seconds < 0 || r.Seconds > maxSeconds:
		return fmt.Errorf("it took %d seconds, want 0 to %d", r.Seconds, maxSeconds)
	}
	return nil
}

// word reports whether s is of the letters that an image's ID and an architecture have.
func word(s string) bool {
	return s != "" && len(s) <= maxText && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// Name is a maker's text as a report has it: on one line, of what can be shown.
func Name(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return strings.TrimSpace(s)
}

// FileName is what a report is stored under: by its version and by chance, so that it says
// nothing of the machine.
func (r *Report) FileName(random io.Reader) (string, error) {
	var b [12]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s-%s-%s%s", r.ImageID, r.Version, hex.EncodeToString(b[:]), Suffix), nil
}

// Of says what became of the newest trial that has ended, by the boot journal: nil where
// there is none. A version that was kept and given up later has failed. The caller adds of which image it is, the channel and the machine's make.
func Of(entries []journal.Entry) *Report {
	var last *Report
	var t trial
	for _, e := range entries {
		if r := t.take(e); r != nil {
			last = r
		}
	}
	return last
}

// A trial is what the journal says of one, so far.
type trial struct {
	version contract.Version // 0: none is under way
	from    contract.Version
	cause   Cause
	began   time.Time
	running contract.Version // what was handed over to last, and is not a trial
	kept    *trial           // the last that was kept, which somebody may give up yet
}

// take goes on by one entry, and returns what became of the trial that it ends.
func (t *trial) take(e journal.Entry) *Report {
	if e.Kind == journal.Staged {
		*t = trial{version: e.Version, from: t.running, running: t.running}
		return nil
	}
	if e.Kind == journal.Boot && e.Version != t.version {
		t.running = e.Version
	}
	if e.Watchdog && t.version != 0 {
		t.cause = Hang
	}
	if e.Kind == journal.Rollback && t.kept != nil && e.Version == t.kept.version {
		gone := *t.kept
		t.kept, gone.cause = nil, GivenUp
		return gone.end(e.Time, Failed)
	}
	if e.Version == 0 || e.Version != t.version {
		return nil
	}
	switch e.Kind {
	case journal.Boot:
		if t.began.IsZero() {
			t.began = e.Time
		}
	case journal.Unhealthy:
		t.cause = Unhealthy
	case journal.Condemned:
		t.cause = Condemned
	case journal.NoRoom:
		t.cause = NoRoom
	case journal.Rollback:
		t.cause = GivenUp
	case journal.Blessed:
		kept := &trial{version: t.version, from: t.from}
		t.running = e.Version
		r := t.end(e.Time, Kept)
		t.kept = kept
		return r
	case journal.Failed:
		if t.cause == "" {
			t.cause = Ended
		}
		return t.end(e.Time, Failed)
	}
	return nil
}

// end is the trial's report.
func (t *trial) end(at time.Time, result Result) *Report {
	r := &Report{Format: Format, Version: t.version, From: t.from, Result: result, Day: at.UTC().Format(day)}
	if result == Failed {
		r.Cause = t.cause
	}
	if took := at.Sub(t.began); !t.began.IsZero() && took > 0 && took <= maxSeconds*time.Second {
		r.Seconds = int64(took / time.Second)
	}
	*t = trial{running: t.running}
	return r
}
