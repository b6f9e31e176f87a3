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
	onJobs map[int]func(*Job)
	calls  int       // that somebody waits for
	active time.Time // when the last one ended
	ending bool      // nothing is begun any more

	checking  chan struct{} // holds one when a check is under way, or a fetch is about to begin
	stopCheck context.CancelCauseFunc
	checked   checked

	looking chan struct{} // holds one when the state is looked at
	status  struct {      // as it was last
		out   *machine.Status
		until time.Time
	}
}

// checked is what the last check has found.
type checked struct {
	out   *machine.Outcome
	err   error
	until time.Time // that it is given to others who ask
}

// New returns a service. open gives the machine as it is now.
func New(open func() *machine.Machine) *Service {
	return &Service{Open: open, checking: make(chan struct{}, 1), looking: make(chan struct{}, 1), onJobs: map[int]func(*Job){}, active: time.Now()}
}

// Enter says that somebody waits for an answer, until leave.
func (s *Service) Enter() (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls--
		s.active = time.Now()
	}
}

// Idle says for how long nobody has waited for an answer, and nothing has been fetched.
func (s *Service) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy() {
		return 0
	}
	return time.Since(s.active)
}

func (s *Service) busy() bool { return s.calls > 0 || s.job != nil && !s.job.ended() }

// End reports whether the service may end, since nobody waits for it. From then on it
// answers, and begins no fetch.
func (s *Service) End() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy() {
		return false
	}
	s.ending = true
	return true
}

// Obstacles says what stands against a restart into a release that waits, for a user; an
// error says that none waits, or that nobody knows.
func (s *Service) Obstacles(ctx context.Context, user uint32) (when.Obstacles, error) {
	return s.Open().RestartObstacles(ctx, user)
}

// Restart restarts the machine into a release that waits.
func (s *Service) Restart(ctx context.Context, o when.Order) error {
	return s.Open().RestartBy(ctx, o)
}

// How long what a check has found is given to others who ask. A check has the machine for
// itself, and in between a timer's fetch comes in.
const (
	freshFor  = time.Minute
	failedFor = 10 * time.Second
	// checkFor bounds a check: a server that takes its time keeps no timer's fetch away,
	// which waits for longer (machine.FetchWhenFit).
	checkFor = 10 * time.Minute
)

// errFetch is why a check was ended that was in the way.
var errFetch = errors.New("a fetch has begun meanwhile")

// Check asks the server what it offers: one check at a time, however many ask for it.
func (s *Service) Check(ctx context.Context) (*machine.Outcome, error) {
	for {
		out, again, err := s.check(ctx)
		if !again {
			return out, err
		}
	}
}

// check is Check until a fetch ends it. Then again one is made beside the fetch.
func (s *Service) check(ctx context.Context) (_ *machine.Outcome, again bool, _ error) {
	if j := s.Job(); j != nil {
		select {
		case <-ctx.Done():
		case <-j.entered:
		}
	}
	select {
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	case s.checking <- struct{}{}:
	}
	defer func() { <-s.checking }()
	within, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	last := s.checked
	s.stopCheck = stop
	before := s.job != nil && !closed(s.job.entered) // it began when there was nothing to stop yet
	s.mu.Unlock()
	if time.Now().Before(last.until) {
		return last.out, false, last.err
	}
	if before {
		return nil, true, nil
	}
	limited, cancel := context.WithTimeout(within, checkFor)
	defer cancel()
	out, err := s.Open().Check(limited, machine.Options{})
	if within.Err() != nil { // which says nothing to others
		return out, err != nil && errors.Is(context.Cause(within), errFetch), err
	}
	last = checked{out, err, time.Now().Add(freshFor)}
	if err != nil {
		last.until = time.Now().Add(failedFor)
	} else {
		_ = s.Open().LeaveMetainfo(out) // without it less is shown
	}
	s.mu.Lock()
	s.checked = last
	s.mu.Unlock()
	return out, false, err
}

// changed has the next who ask for the state, or check, look again.
func (s *Service) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = checked{}
	s.status.out = nil
}

// statusFor is how long what there is to know is given to others who ask.
const statusFor = time.Second

// Status says what there is to know. It looks into both slots: one at a time does, however
// many ask.
func (s *Service) Status(ctx context.Context) (*machine.Status, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case s.looking <- struct{}{}:
	}
	defer func() { <-s.looking }()
	s.mu.Lock()
	last := s.status
	s.mu.Unlock()
	if last.out != nil && time.Now().Before(last.until) {
		return last.out, nil
	}
	out, err := s.Open().Status(ctx)
	if err != nil {
		return out, err
	}
	s.mu.Lock()
	s.status.out, s.status.until = out, time.Now().Add(statusFor)
	s.mu.Unlock()
	return out, nil
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

// Extensions says which system extensions the releases here have.
func (s *Service) Extensions() (*machine.Extensions, error) { return s.Open().ListExtensions() }

// EnableExtensions fetches and enables some. It has the machine for itself, as a fetch does.
func (s *Service) EnableExtensions(ctx context.Context, names []string, tell func(worker.Event)) (*machine.ExtensionChange, error) {
	defer s.changed()
	return s.Open().EnableExtensions(ctx, names, machine.Options{Tell: tell})
}

// DisableExtensions has the next start leave some out.
func (s *Service) DisableExtensions(names []string) (*machine.ExtensionChange, error) {
	defer s.changed()
	return s.Open().DisableExtensions(names)
}
