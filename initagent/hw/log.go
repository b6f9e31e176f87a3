package hw

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A Log takes what initagent says to every console and to the kernel's log, each
// step with how long it took.
type Log struct {
	mu      sync.Mutex
	console io.Writer
	kmsg    io.Writer
	entries []Entry
	started time.Time
	held    *strings.Builder // what the consoles have not been shown; nil: nothing is held
}

// An Entry is one step of the boot, for the journal.
type Entry struct {
	Step     string        `json:"step"`
	Reason   string        `json:"reason,omitempty"`
	Error    string        `json:"error,omitempty"`
	Duration time.Duration `json:"ns"`
}

// NewLog returns a log that writes to the given places.
func NewLog(console, kmsg io.Writer) *Log {
	return &Log{console: console, kmsg: kmsg, started: time.Now()}
}

// Hold keeps what is said off the consoles until Show, and at the latest until longest
// has passed: a boot that goes well, and fast, then shows nothing. The kernel's log has
// all of it at once.
func (l *Log) Hold(longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = new(strings.Builder)
	time.AfterFunc(longest, l.Show)
}

// Show has the consoles show what was held, and from now on all that is said.
func (l *Log) Show() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		return
	}
	fmt.Fprint(l.console, l.held)
	l.held = nil
}

// OpenLog opens the terminals that the kernel writes to and its log. What cannot be
// opened is done without: a machine must boot without a console.
func OpenLog() *Log {
	list := func() []string { return Terminals("/sys") }
	l := NewLog(&everywhere{list: list, open: map[string]*Terminal{}}, io.Discard)
	// Or the kernel drops all but ten lines in five seconds.
	_ = os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0)
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		l.kmsg = f
	}
	return l
}

// debug is the kernel's log level that no console shows: we write there
// ourselves.
const debug = "<15>"

// Say writes one message to all of them. A warning is shown even in a quiet boot: what
// is held is gone with the hand-over, and a warning may be said nowhere else.
func (l *Log) Say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if strings.HasPrefix(text, "WARNING") {
		l.Show()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var console io.Writer = l.console
	if l.held != nil {
		console = l.held
	}
	fmt.Fprintf(console, "halogen: %s\r\n", strings.ReplaceAll(text, "\n", "\r\n         "))
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintf(l.kmsg, "%sinitagent: %s\n", debug, line)
	}
}

// Step runs one step of the boot and records it.
func (l *Log) Step(step, reason string, run func() error) error {
	start := time.Now()
	err := run()
	e := Entry{Step: step, Reason: reason, Duration: time.Since(start)}
	if err != nil {
		e.Error = err.Error()
		l.Show()
		l.Say("%s FAILED after %s: %v", step, short(e.Duration), err)
	} else {
		l.Say("%s (%s): %s", step, short(e.Duration), reason)
	}
	l.mu.Lock()
	l.entries = append(l.entries, e)
	l.mu.Unlock()
	return err
}

// Announce says and records a step from which the boot does not come back. It is shown.
func (l *Log) Announce(step, reason string) {
	l.Show()
	l.Say("%s: %s", step, reason)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, Entry{Step: step, Reason: reason})
}

// Total is how long ago the log was opened.
func (l *Log) Total() time.Duration { return time.Since(l.started) }

// Age is Total in words.
func (l *Log) Age() string { return short(l.Total()) }

// Entries returns the steps so far.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Entry(nil), l.entries...)
}

// short is a duration in ASCII, which every console can show.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// Progress returns a function that reports how much of total is done: at most
// once a second, and only of work that lasts longer than two.
func (l *Log) Progress(what string, total int64) func(done int64) {
	start := time.Now()
	var mu sync.Mutex
	last := start.Add(time.Second)
	return func(done int64) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if total <= 0 || now.Sub(last) < time.Second {
			return
		}
		last = now
		line := fmt.Sprintf("%s: %d %%", what, done*100/total)
		if done > 0 {
			rest := time.Duration(float64(now.Sub(start)) * float64(total-done) / float64(done))
			line += fmt.Sprintf(", %s left", rest.Round(time.Second))
		}
		l.Say("%s", line)
	}
}
