package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// A Job is a fetch under way, or one that has ended.
type Job struct {
	ID     uint64
	Done   chan struct{} // closed when it has ended
	cancel context.CancelCauseFunc
	wish   Wish
	// hurry is closed when the job is to go over the owner's rules from then on.
	hurry chan struct{}
	// entered is closed when checks no longer come before it.
	entered chan struct{}

	mu   sync.Mutex
	last machine.Progress
	// outcome and err are set before Done is closed.
	outcome *machine.Outcome
	err     error
}

// A Wish is what a fetch is asked for.
type Wish struct {
	// Version is the one that is to be fetched; 0 is whatever is offered.
	Version contract.Version
	Now     bool // whatever the owner's rules of when say
	Once    bool // it ends where they do not let it fetch; else it waits
}

var (
	// ErrCancelled is why a fetch ended that somebody cancelled.
	ErrCancelled = errors.New("it was cancelled: what has arrived is kept, and another fetch goes on where it was")

	errUnderWay = fmt.Errorf("%w: a fetch is under way. Follow it, or cancel it", machine.ErrBusy)
	errEnding   = fmt.Errorf("%w: the service ends, since nobody has asked it. Ask again", machine.ErrBusy)
	errHurry    = errors.New("somebody does not want to wait")
)

// Fetch begins a fetch. One that waits for a better time goes on at once where somebody
// wants that, and is returned then. Any other that is under way is an error.
func (s *Service) Fetch(w Wish) (*Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, errEnding
	}
	if j := s.job; j != nil && !j.ended() {
		if !w.Now || j.wish.Now || w.Version != 0 && w.Version != j.wish.Version {
			return nil, errUnderWay
		}
		j.wish.Now = true
		close(j.hurry) // the first time
		return j, nil
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.ids++
	j := &Job{ID: s.ids, Done: make(chan struct{}), cancel: cancel, wish: w, hurry: make(chan struct{}), entered: make(chan struct{})}
	s.job = j
	for _, tell := range s.onJobs {
		tell(j)
	}
	if s.stopCheck != nil {
		s.stopCheck(errFetch)
	}
	go func() {
		defer cancel(nil)
		s.run(ctx, j, w)
		s.changed()
		close(j.Done)
	}()
	return j, nil
}

// NextID is the ID of a job that is not a fetch.
func (s *Service) NextID() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids++
	return s.ids
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

// OnJobs has each fetch told that begins, and one that is under way, until forget.
func (s *Service) OnJobs(tell func(*Job)) (forget func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := 0
	for s.onJobs[id] != nil {
		id++
	}
	s.onJobs[id] = tell
	if s.job != nil && !s.job.ended() {
		tell(s.job)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.onJobs, id)
	}
}

// firstWord bounds how long checks wait for a fetch to have the machine for itself.
const firstWord = 10 * time.Second

// run fetches. Checks wait until the fetch has the machine for itself, which its first
// word says.
func (s *Service) run(ctx context.Context, j *Job, w Wish) {
	var out *machine.Outcome
	var err error
	select {
	case <-ctx.Done():
		close(j.entered)
		err = context.Cause(ctx)
	case s.checking <- struct{}{}:
		close(j.entered)
		free := sync.OnceFunc(func() { <-s.checking })
		defer time.AfterFunc(firstWord, free).Stop()
		out, err = j.attempt(ctx, s.Open(), w, free)
		free()
	}
	if err != nil && errors.Is(context.Cause(ctx), ErrCancelled) {
		out, err = nil, ErrCancelled
	}
	j.mu.Lock()
	j.outcome, j.err = out, err
	j.mu.Unlock()
}

// attempt fetches, and goes along with a fetch that a timer or a person has begun.
func (j *Job) attempt(ctx context.Context, m *machine.Machine, w Wish, free func()) (*machine.Outcome, error) {
	meter := machine.NewMeter(m.Now)
	tell := func(e worker.Event) {
		free()
		j.set(meter.Take(e))
	}
	for along := false; ; {
		o := machine.Options{Version: w.Version, Impatient: w.Now, Patient: !w.Now && !w.Once, Measure: true, Tell: tell}
		out, hurried, err := j.once(ctx, m, o)
		switch {
		case hurried:
			w.Now = true
		case errors.Is(err, machine.ErrBusy) && !along:
			free()
			if follow := m.Follow(ctx, j.set); follow != nil {
				return nil, err // it is not a fetch that has the machine
			}
			along = true // and what it has fetched is there now
		default:
			return out, err
		}
	}
}

// once fetches until somebody does not want it to wait.
func (j *Job) once(ctx context.Context, m *machine.Machine, o machine.Options) (_ *machine.Outcome, hurried bool, _ error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !o.Impatient {
		go func() {
			select {
			case <-ctx.Done():
			case <-j.hurry:
				cancel(errHurry)
			}
		}()
	}
	out, err := m.FetchWhenFit(ctx, o)
	return out, err != nil && errors.Is(context.Cause(ctx), errHurry), err
}

func (j *Job) set(p machine.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = p
}

func (j *Job) ended() bool { return closed(j.Done) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
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
