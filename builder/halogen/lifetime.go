package main

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// A lifetime is a duration on the command line, which may be in days, as gpg takes
// them, or weeks.
type lifetime time.Duration

// String implements flag.Value.
func (l *lifetime) String() string { return time.Duration(*l).String() }

// Set implements flag.Value.
func (l *lifetime) Set(text string) error {
	for unit, hours := range map[string]int64{"d": 24, "w": 7 * 24} {
		digits, ok := strings.CutSuffix(text, unit)
		n, err := strconv.ParseInt(digits, 10, 32)
		if ok && err == nil && n <= math.MaxInt64/int64(time.Hour)/hours {
			*l = lifetime(time.Duration(n*hours) * time.Hour)
			return nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("want a duration such as 30d, 4w or 720h, or 0 for ever")
	}
	*l = lifetime(d)
	return nil
}
