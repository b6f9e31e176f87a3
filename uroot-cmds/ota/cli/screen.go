package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

const (
	// plainEvery is how often progress is said where lines stay.
	plainEvery = 10 * time.Second
	// worthSaying is the number of bytes from which on it is.
	worthSaying = 1 << 20
	// window is what a rate is measured over.
	window = 5 * time.Second
)

// A screen shows progress: in one line that changes on a terminal, now and then
// in a line of its own elsewhere, and not at all when it is quiet.
type screen struct {
	w        io.Writer
	terminal bool
	quiet    bool
	now      func() time.Time

	mu      sync.Mutex
	phase   string
	samples []sample
	said    time.Time
	width   int // characters of the line that changes
}

type sample struct {
	at   time.Time
	done int64
}

func newScreen(w io.Writer, terminal, quiet bool) *screen {
	return &screen{w: w, terminal: terminal, quiet: quiet, now: time.Now}
}

// event shows what a worker says.
func (s *screen) event(e worker.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.quiet:
	case e.Note != "":
		s.clear()
		fmt.Fprintf(s.w, "%s\n", plain(e.Note))
	case e.Progress != nil:
		s.progress(*e.Progress)
	}
}

// warn says what should be known even where all else is quiet.
func (s *screen) warn(text string) {
	if text != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clear()
		fmt.Fprintf(s.w, "warning: %s\n", plain(text))
	}
}

// end leaves the line that changes.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

func (s *screen) clear() {
	if s.width > 0 {
		fmt.Fprintf(s.w, "\r%s\r", strings.Repeat(" ", s.width))
		s.width = 0
	}
}

func (s *screen) progress(p fetch.Progress) {
	now := s.now()
	name := plain(string(p.Phase)) + " " + plain(p.File)
	if name != s.phase {
		s.phase, s.samples, s.said = name, nil, now
		if !s.terminal && p.Total >= worthSaying {
			fmt.Fprintf(s.w, "%s (%s)\n", name, size(p.Total))
		}
	}
	s.samples = append(s.samples, sample{now, p.Done})
	for len(s.samples) > 2 && now.Sub(s.samples[1].at) > window {
		s.samples = s.samples[1:]
	}
	switch {
	case s.terminal:
		line := s.line(name, p)
		pad := max(0, s.width-utf8.RuneCountInString(line))
		fmt.Fprintf(s.w, "\r%s%s", line, strings.Repeat(" ", pad))
		s.width = utf8.RuneCountInString(line)
	case now.Sub(s.said) >= plainEvery:
		s.said = now
		fmt.Fprintln(s.w, s.line(name, p))
	}
}

// line says how far a phase is, how fast it gets on, and how long it will take.
func (s *screen) line(name string, p fetch.Progress) string {
	percent := int64(100)
	if p.Total > 0 {
		percent = min(p.Done*100/p.Total, 100)
	}
	text := fmt.Sprintf("%s %d %% of %s", name, percent, size(p.Total))
	first, last := s.samples[0], s.samples[len(s.samples)-1]
	spent := last.at.Sub(first.at)
	if spent < time.Second || last.done <= first.done {
		return text
	}
	rate := float64(last.done-first.done) / spent.Seconds()
	left := time.Duration(float64(max(p.Total-p.Done, 0)) / rate * float64(time.Second))
	return fmt.Sprintf("%s, %s/s, %s left", text, size(int64(rate)), clock(left))
}

// clock is a duration as hours, minutes and seconds.
func clock(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
