// Package service is what otad does for those who ask it. It does what the command ota
// does, by the same functions of package machine, and has nothing of its own but one fetch
// at a time that outlives its caller.
package service

import (
	"context"
	"errors"
	"sync"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/settings"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// A Service is one, for all callers.
type Service struct {
	Open func() *machine.Machine

	mu     sync.Mutex
	job    *Job // the last one
	ids    uint64
	onJobs []func(*Job)

	checking chan struct{} // holds one when a check is under way
	checked  checked
}

// checked is what the last check has found.
type checked struct {
	out   *machine.Outcome
	err   error
	until time.Time // that it is given to others who ask
}

// New returns a service. open gives the machine as it is now.
func New(open func() *machine.Machine) *Service {
	return &Service{Open: open, checking: make(chan struct{}, 1)}
}

// Restart restarts the machine at a time; the zero time is now.
func (s *Service) Restart(ctx context.Context, at time.Time) error {
	return s.Open().Reboot(ctx, at, "The machine restarts into an update of its system.")
}

// How long what a check has found is given to others who ask. A check has the machine for
// itself, and in between a timer's fetch comes in.
const (
	freshFor  = time.Minute
	failedFor = 10 * time.Second
)

// A Job is a fetch under way, or one that has ended.
type Job struct {
	ID     uint64
	Done   chan struct{} // closed when it has ended
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	last machine.Progress
	// outcome and err are set before Done is closed.
	outcome *machine.Outcome
	err     error
}

// ErrCancelled is why a fetch ended that somebody cancelled.
var ErrCancelled = errors.New("it was cancelled: what has arrived is kept, and another fetch goes on where it was")

// Fetch begins a fetch, or returns the one that is under way.
func (s *Service) Fetch(now bool) (j *Job, begun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job != nil && !s.job.ended() {
		return s.job, false
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.ids++
	s.job = &Job{ID: s.ids, Done: make(chan struct{}), cancel: cancel}
	for _, tell := range s.onJobs {
		tell(s.job)
	}
	go func(j *Job) {
		j.run(ctx, s.Open(), now)
		s.changed()
		close(j.Done)
	}(s.job)
	return s.job, true
}

// Job returns the fetch that is under way; nil is none.
func (s *Service) Job() *Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job == nil || s.job.ended() {
		return nil
	}
	return s.job
}

// OnJobs has each fetch told that begins from now on.
func (s *Service) OnJobs(tell func(*Job)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onJobs = append(s.onJobs, tell)
}

func (j *Job) run(ctx context.Context, m *machine.Machine, now bool) {
	defer j.cancel(nil)
	meter := machine.NewMeter(m.Now)
	out, err := m.FetchWhenFit(ctx, machine.Options{Impatient: now, Patient: !now, Measure: true, Tell: func(e worker.Event) {
		p := meter.Take(e)
		j.mu.Lock()
		j.last = p
		j.mu.Unlock()
	}})
	if err != nil && errors.Is(context.Cause(ctx), ErrCancelled) {
		out, err = nil, ErrCancelled
	}
	j.mu.Lock()
	j.outcome, j.err = out, err
	j.mu.Unlock()
}

func (j *Job) ended() bool {
	select {
	case <-j.Done:
		return true
	default:
		return false
	}
}

// Cancel ends it.
func (j *Job) Cancel() { j.cancel(ErrCancelled) }

// Progress says how far it is.
func (j *Job) Progress() machine.Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Outcome says how it ended.
func (j *Job) Outcome() (*machine.Outcome, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.outcome, j.err
}

// tellEvery is how often progress is told.
const tellEvery = 300 * time.Millisecond

// Follow tells of progress, at most as often as it is taken, until the fetch has ended or
// tell fails. A caller that reads slowly misses some of it, and holds up nobody.
func (j *Job) Follow(ctx context.Context, tell func(machine.Progress) error) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	var last machine.Progress
	for {
		if p := j.Progress(); p != last {
			if err := tell(p); err != nil {
				return err
			}
			last = p
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-j.Done:
			return nil
		case <-tick.C:
		}
	}
}

// Check asks the server what it offers: one check at a time, however many ask for it.
func (s *Service) Check(ctx context.Context) (*machine.Outcome, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case s.checking <- struct{}{}:
	}
	defer func() { <-s.checking }()
	s.mu.Lock()
	last := s.checked
	s.mu.Unlock()
	if time.Now().Before(last.until) {
		return last.out, last.err
	}
	out, err := s.Open().Check(ctx, machine.Options{})
	if ctx.Err() != nil {
		return out, err // which says nothing to others
	}
	last = checked{out, err, time.Now().Add(freshFor)}
	if err != nil {
		last.until = time.Now().Add(failedFor)
	}
	s.mu.Lock()
	s.checked = last
	s.mu.Unlock()
	return out, err
}

// changed has the next check look again.
func (s *Service) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = checked{}
}

// Status says what there is to know.
func (s *Service) Status(ctx context.Context) (*machine.Status, error) {
	return s.Open().Status(ctx)
}

// Rollback gives up what was installed last.
func (s *Service) Rollback(reason string) (*machine.Rollback, error) {
	defer s.changed()
	return s.Open().GiveUp(reason)
}

// Retry takes a version off the list of those that are not tried again.
func (s *Service) Retry(version, reason string) error {
	v, err := contract.ParseVersion(version)
	if err != nil {
		return err
	}
	defer s.changed()
	return s.Open().Retry(v, reason)
}

// Channel says which channel is followed.
func (s *Service) Channel() (manifest.Channel, error) {
	set, err := s.Open().Settings()
	return set.Channel, err
}

// SetChannel changes it.
func (s *Service) SetChannel(c string) error {
	channel, err := manifest.ParseChannel(c)
	if err != nil {
		return err
	}
	defer s.changed()
	return s.Open().SetChannel(channel)
}

// Settings are those of ota.conf that hold no password.
type Settings struct {
	Server         string           `json:"server"`
	Channel        manifest.Channel `json:"channel"`
	RateLimit      int64            `json:"rate_limit"`
	SignedManifest settings.Demand  `json:"require_signed_manifest"`
	When           when.Rules       `json:"when"`
}

// Settings says them.
func (s *Service) Settings() (Settings, error) {
	set, err := s.Open().Settings()
	return Settings{machine.Redacted(set.Server), set.Channel, set.RateLimit, set.SignedManifest, set.When}, err
}

// History says what became of the systems.
func (s *Service) History(all bool) (*machine.History, error) { return s.Open().History(all) }

// News says what the version that runs has brought; nil is nothing that is known.
func (s *Service) News() (*machine.News, error) { return s.Open().News() }

// Changes are the files that wait for a decision, and what was left out.
func (s *Service) Changes() (conflicts, leftOut []string, err error) {
	w, err := s.Open().Waiting()
	return w.Conflicts, w.LeftOut, err
}
