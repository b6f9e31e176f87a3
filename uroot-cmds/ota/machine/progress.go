package machine

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// progressFile says how far a fetch is, to anyone who wants to follow it. It is in memory.
const (
	progressFile = "run/halogen/fetch.json"
	// aliveFile is locked as long as the fetch is under way that tells of itself: a process
	// that was killed leaves its file, and no lock. ota.lock is not asked, since who asks
	// for a lock has it for a moment.
	aliveFile = "run/halogen/fetch.lock"
)

const (
	progressFormat = 1
	// tellEvery is how often the file is written.
	tellEvery = 500 * time.Millisecond
	// rateOver is what a rate is measured over.
	rateOver = 5 * time.Second
)

// A Progress is how far a fetch is.
type Progress struct {
	Format  int              `json:"format"`
	Version contract.Version `json:"version,omitempty"` // that is fetched; 0 is not known yet
	fetch.Progress
	// Total is how many bytes it will have fetched from the server in all; nil is not known.
	FetchTotal *int64 `json:"fetch_total,omitempty"`
	// Rate is bytes from the server a second, and Left how many seconds the fetch will take
	// at it; 0 is not known.
	Rate int64 `json:"bytes_per_second,omitempty"`
	Left int64 `json:"seconds_left,omitempty"`
	// Note is what was said last.
	Note string `json:"note,omitempty"`
}

// A Meter makes a Progress of what a worker says.
type Meter struct {
	now func() time.Time

	mu      sync.Mutex
	p       Progress
	samples []sample
}

// NewMeter returns one that goes by a clock.
func NewMeter(now func() time.Time) *Meter { return &Meter{now: now} }

type sample struct {
	at      time.Time
	fetched int64
}

// Take adds an event, and returns how far the fetch is then.
func (m *Meter) Take(e worker.Event) Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Format = progressFormat
	switch {
	case e.Measured != nil:
		total := e.Measured.Bytes
		m.p.FetchTotal = &total
	case e.Note != "":
		m.p.Note = clip(e.Note)
	case e.Progress != nil:
		m.p.Progress = *e.Progress
		m.p.Phase, m.p.File = fetch.Phase(clip(string(m.p.Phase))), clip(m.p.File)
		m.rate()
	}
	return m.p
}

// maxText bounds what a worker's words take in what is told to others, in bytes.
const maxText = 300

// clip is the beginning of what a worker says, which a server may have taken over.
func clip(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return Plain(s)
}

// Plain is text that cannot steer a terminal, and that D-Bus can carry.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// progress is how far the fetch is.
func (m *Meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p
}

// of says which version is fetched.
func (m *Meter) of(v contract.Version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p.Version = v
}

func (m *Meter) rate() {
	now := m.now()
	m.samples = append(m.samples, sample{now, m.p.Fetched})
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) > rateOver {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	m.p.Rate, m.p.Left = 0, 0
	if spent := now.Sub(first.at).Seconds(); spent >= 1 {
		m.p.Rate = int64(float64(m.p.Fetched-first.fetched) / spent)
	}
	if m.p.FetchTotal != nil && m.p.Rate > 0 {
		m.p.Left = max(*m.p.FetchTotal-m.p.Fetched, 0) / m.p.Rate
	}
}

// A teller writes the file now and then.
type teller struct {
	meter *Meter
	path  string
	alive *os.File
	mu    sync.Mutex
	said  time.Time
	late  *time.Timer // writes a note that came too soon; nil is none
	ended bool
}

// tell takes an event and leaves how far the fetch is, now and then: a worker may say as
// much as it likes.
func (t *teller) tell(e worker.Event) {
	t.meter.Take(e)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.meter.now()
	if now.Sub(t.said) < tellEvery && now.After(t.said) && e.Measured == nil {
		if e.Note != "" && t.late == nil { // after which nothing may come for a while
			t.late = time.AfterFunc(tellEvery, t.tellLate)
		}
		return
	}
	t.write(now)
}

func (t *teller) tellLate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.late = nil; !t.ended {
		t.write(t.meter.now())
	}
}

// write leaves how far the fetch is. That it cannot be left keeps nobody from an update.
func (t *teller) write(now time.Time) {
	t.said = now
	text, err := json.Marshal(t.meter.progress())
	if err != nil {
		return
	}
	// Anyone who reads sees one or the other. A cut leaves nothing of it: it is in memory.
	if err := os.WriteFile(t.path+".new", append(text, '\n'), 0o644); err == nil {
		_ = os.Rename(t.path+".new", t.path)
	}
}

func (t *teller) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	_ = os.Remove(t.path) // in memory
	if t.alive != nil {
		_ = t.alive.Close() // which gives the lock back
	}
}

// live takes the lock, which nobody else does: those who follow ask who has it.
func live(path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		_ = f.Close()
		return nil
	}
	return f
}

// telling has the update leave how far it is.
func (u *update) telling() (end func()) {
	t := &teller{meter: NewMeter(time.Now), path: u.path(progressFile), alive: live(u.path(aliveFile))}
	tell := u.Tell
	u.Tell = func(e worker.Event) {
		t.tell(e)
		tell(e)
	}
	u.meter = t.meter
	return t.end
}

// ErrIdle says that no fetch is under way.
var ErrIdle = errors.New("no fetch is under way")

// Follow tells how far the fetch is that is under way, no matter who began it, when that has
// changed, and returns when it has ended. ErrIdle: there was none.
func (m *Machine) Follow(ctx context.Context, tell func(Progress)) error {
	var last []byte
	for seen := false; ; {
		busy, err := m.busy()
		if err != nil {
			return err
		}
		if !busy && !seen {
			return ErrIdle
		}
		if !busy {
			return nil
		}
		seen = true
		text, err := m.read(progressFile)
		var p Progress
		if err == nil && string(text) != string(last) && json.Unmarshal(text, &p) == nil && p.Format == progressFormat {
			tell(p)
		}
		last = text
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(tellEvery):
		}
	}
}

// busy reports whether a fetch is under way that tells of itself.
func (m *Machine) busy() (bool, error) {
	f, err := os.OpenFile(m.path(aliveFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	// It is asked for and not taken: those who follow would keep a fetch from having it.
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, err
}
