package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

const (
	// lookEvery is how often it is asked whether this is still a time to fetch.
	lookEvery = 30 * time.Second
	// maxWait bounds how long a fetch waits for a better time. The timer starts another.
	maxWait = 24 * time.Hour
	// busyWait bounds how long a patient one waits for another ota, which may only be
	// finding out what is offered, and busyEvery is how often it tries.
	busyWait  = 15 * time.Minute
	busyEvery = time.Second
)

// unfit says why a fetch was ended, or not begun.
type unfit struct{ reason string }

// Error implements error.
func (u *unfit) Error() string { return u.reason }

// FetchWhenFit is Fetch at a time that suits the owner's rules, which Impatient goes
// over. A fetch is ended where the time does not suit any more: what has arrived is kept.
// Patient has it wait and go on; without it the outcome is that it was not done.
func (m *Machine) FetchWhenFit(ctx context.Context, o Options) (*Outcome, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	if o.Impatient || r.Console {
		return m.Fetch(ctx, o)
	}
	said, start := "", m.Now()
	for until := start.Add(maxWait); ; {
		out, err := m.fetchWhile(ctx, o)
		if errors.Is(err, ErrBusy) && o.Patient && m.Now().Before(start.Add(busyWait)) {
			if err := m.sleep(ctx, busyEvery); err != nil {
				return nil, err
			}
			continue
		}
		var u *unfit
		if !errors.As(err, &u) || ctx.Err() != nil {
			return out, err
		}
		if !o.Patient || m.Now().After(until) {
			return m.notNow(r, u), nil
		}
		if o.Tell != nil && u.reason != said {
			o.Tell(worker.Event{Note: fmt.Sprintf("waiting, and going on later: %s", u.reason)})
		}
		said = u.reason
		if err := m.sleep(ctx, lookEvery); err != nil {
			return nil, err
		}
	}
}

// notNow is the outcome where this is no time to fetch.
func (m *Machine) notNow(r *Running, u *unfit) *Outcome {
	d := offer.Decision{Verdict: offer.Later, Reason: fmt.Sprintf("nothing is fetched now: %s. What has arrived is kept; `ota fetch --now` does not wait", u.reason)}
	return &Outcome{Decision: d, Running: r.Contract.Version}
}

// fetchWhile fetches for as long as the time suits. Its error is an unfit then.
func (m *Machine) fetchWhile(ctx context.Context, o Options) (*Outcome, error) {
	if err := m.fit(ctx, o, false); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var arrived atomic.Bool // all is there: what is left would begin from the start again
	tell := o.Tell
	o.Tell = func(e worker.Event) {
		if e.Progress != nil {
			arrived.Store(e.Progress.Phase == fetch.Verifying)
		}
		if tell != nil {
			tell(e)
		}
	}
	go func() {
		for m.sleep(ctx, lookEvery) == nil {
			// It may have arrived while that was found out.
			if err := m.fit(ctx, o, true); err != nil && !arrived.Load() {
				cancel(err)
			}
		}
	}()
	out, err := m.Fetch(ctx, o)
	if u := new(unfit); err != nil && errors.As(context.Cause(ctx), &u) {
		return nil, u
	}
	return out, err
}

// fit returns an unfit where this is no time to fetch, or to go on with a fetch that has
// begun: its own load does not end it. The settings are read each time: the owner may have
// changed them.
func (m *Machine) fit(ctx context.Context, o Options, begun bool) error {
	s, err := m.Settings()
	if err != nil && begun {
		return nil // it is being saved, maybe
	}
	if err != nil {
		return err
	}
	c := m.Surroundings(ctx)
	if begun {
		c.Load = 0
	}
	c.Local = local(cmp.Or(o.From, s.Server))
	if reason := s.When.Unfit(c); reason != "" {
		return &unfit{reason}
	}
	return nil
}

// local reports whether a release comes from a disk, and not over a network.
func local(from string) bool {
	return !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://")
}

// sleep waits, or less where a test has no time.
func (m *Machine) sleep(ctx context.Context, every time.Duration) error {
	if m.LookEvery > 0 {
		every = m.LookEvery
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(every):
		return nil
	}
}
