// Package when decides whether this is a time to fetch a release.
//
// It decides over a snapshot and looks at nothing itself. What is not known keeps nobody
// from an update: a machine without a battery, without NetworkManager, is as any server.
package when

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rules are what the owner wants.
type Rules struct {
	// Metered lets a fetch use a connection whose use costs money.
	Metered bool `json:"fetch_metered"`
	// BatteryAbove is the charge in percent that a machine on battery must have more of;
	// 100 is never on battery.
	BatteryAbove int `json:"fetch_battery_above"`
	// Quiet are the hours in which nothing is fetched.
	Quiet Hours `json:"quiet_hours,omitempty"`
	// MaxLoad is the load for each processor above which nothing is fetched; 0 is no limit.
	MaxLoad float64 `json:"max_load,omitempty"`
}

// Usual are the rules where the owner and the image say nothing.
func Usual() Rules { return Rules{BatteryAbove: 30} }

// Conditions are how things are now.
type Conditions struct {
	Now     time.Time // in the machine's time zone
	Metered bool
	Battery int     // percent that it has, where the machine runs on it; -1 where not
	Load    float64 // of the last minute, for each processor
	Local   bool    // the release comes from a disk: no connection is used
}

// Unfit says why this is no time to fetch; "" where it is one.
func (r Rules) Unfit(c Conditions) string {
	switch {
	case c.Metered && !r.Metered && !c.Local:
		return "the network is metered (NetworkManager says so)"
	case c.Battery >= 0 && c.Battery <= r.BatteryAbove:
		return fmt.Sprintf("the machine runs on battery, which has %d %%, and more than %d %% are wanted", c.Battery, r.BatteryAbove)
	case r.Quiet.Hold(c.Now):
		return fmt.Sprintf("it is %s, and quiet hours are %s", c.Now.Format("15:04"), r.Quiet)
	case r.MaxLoad > 0 && c.Load > r.MaxLoad:
		return fmt.Sprintf("the load is %.1f for each processor, above %.1f", c.Load, r.MaxLoad)
	}
	return ""
}

// Hours are spans of the day.
type Hours []Span

// A Span is a part of a day, in minutes since midnight. One that ends before it starts
// goes over midnight.
type Span struct{ From, To int }

const day = 24 * 60

// maxSpans bounds how many spans there are.
const maxSpans = 16

// ParseHours reads spans such as "08:00-18:00, 22:00-06:30"; "" is none.
func ParseHours(s string) (Hours, error) {
	var out Hours
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" && strings.TrimSpace(s) == "" {
			return nil, nil
		}
		from, to, ok := strings.Cut(part, "-")
		start, err := minute(strings.TrimSpace(from))
		end, err2 := minute(strings.TrimSpace(to))
		if !ok || err != nil || err2 != nil || start == end || len(out) == maxSpans {
			return nil, fmt.Errorf("%.60q is not a list of spans of the day, like 08:00-18:00", s)
		}
		out = append(out, Span{start, end})
	}
	return out, nil
}

// minute reads a time of the day; 24:00 is midnight.
func minute(s string) (int, error) {
	if s == "24:00" {
		return 0, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != len("15:04") {
		return 0, errors.New("is not a time of the day")
	}
	return t.Hour()*60 + t.Minute(), nil
}

// Hold reports whether a time lies in one of the spans.
func (h Hours) Hold(t time.Time) bool {
	now := t.Hour()*60 + t.Minute()
	for _, s := range h {
		if (now-s.From+day)%day < (s.To-s.From+day)%day {
			return true
		}
	}
	return false
}

// String is what ParseHours reads.
func (h Hours) String() string {
	var all []string
	for _, s := range h {
		all = append(all, fmt.Sprintf("%02d:%02d-%02d:%02d", s.From/60, s.From%60, s.To/60, s.To%60))
	}
	return strings.Join(all, ", ")
}

// MarshalText implements encoding.TextMarshaler.
func (h Hours) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hours) UnmarshalText(text []byte) (err error) {
	*h, err = ParseHours(string(text))
	return err
}

// ParsePercent reads a number from 0 to 100.
func ParsePercent(s string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(s, "%")), 10, 7)
	if err != nil || n > 100 {
		return 0, fmt.Errorf("%.20q is not a percentage, 0 to 100", s)
	}
	return int(n), nil
}

// ParseLoad reads a load; 0 is none.
func ParseLoad(s string) (float64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1000) {
		return 0, fmt.Errorf("%.20q is not a load for each processor, like 1.5", s)
	}
	return f, nil
}
