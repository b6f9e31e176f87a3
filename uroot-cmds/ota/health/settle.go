package health

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// How long a start is followed. A daemon that cannot work often counts as started and
// ends a moment later; the bound leaves time for health.d in the 14 minutes that all
// of the check has.
const (
	every = 2 * time.Second
	quiet = 10 * time.Second
	bound = 3 * time.Minute
	// oneLook bounds what the service manager takes for an answer.
	oneLook = 30 * time.Second
)

// A Look is what a service manager says at one moment.
type Look struct {
	Failed     []string // and stay so
	Restarting []string // failed, and wait to be started again
	Starting   []string // jobs that others may depend on
	Network    []string // of the failed ones: mounts of a network, which may be away

	// Of a desktop, beside what has failed:
	Present []string // runs, and answers where it is asked
	Missed  []string // does not run
	Silent  bool     // the display server does not answer, or not yet
	Busy    bool     // which may be since the machine is overloaded
}

// A Manager asks one.
type Manager func(ctx context.Context) (*Look, error)

// A Start is what came of a system's start.
type Start struct {
	Failed   []string // those that keep restarting included
	Starting []string // still, when the bound was reached
	Network  []string // as in a [Look]
	Present  []string // as in a [Look]
	Missed   []string // of the failed ones: those that only a desktop's look has told of
}

// Settle follows a start until for 10 seconds nothing has been started and nothing has
// restarted, at most for 3 minutes. First is called with what failed already.
func (ask Manager) Settle(ctx context.Context, first func(failed []string)) (*Start, error) {
	began := time.Now()
	calm := began
	restarted := map[string]time.Time{}
	for asked := false; ; {
		look, err := ask.once(ctx)
		now := time.Now()
		late := now.Sub(began) >= bound
		if err != nil && (late || ctx.Err() != nil) {
			return nil, err
		}
		if err == nil {
			for _, name := range look.Restarting {
				restarted[name] = now
			}
		}
		if err != nil || len(look.Starting)+len(look.Restarting) > 0 || look.Silent {
			calm = now
		}
		if err == nil && !asked {
			asked = true
			first(clip(look.Failed))
		}
		if late || now.Sub(calm) >= quiet {
			maps.DeleteFunc(restarted, func(_ string, at time.Time) bool { return now.Sub(at) >= quiet })
			return look.end(slices.Collect(maps.Keys(restarted))), nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

// end makes of the last look what came of the start, with what has restarted just before.
// A desktop that is silent then has no login, unless it may only be slow.
func (l *Look) end(restarted []string) *Start {
	starting, missed := l.Starting, l.Missed
	switch {
	case l.Silent && l.Busy:
		starting = append(slices.Clone(starting), displayManager)
	case l.Silent:
		missed = append(slices.Clone(missed), displayManager)
	}
	return &Start{
		Failed: clip(slices.Concat(l.Failed, restarted, missed)), Starting: clip(starting),
		Network: l.Network, Present: clip(l.Present), Missed: clip(missed),
	}
}

// Missing says for people what a desktop lacks, a sentence each.
func (s *Start) Missing() (all []string) {
	for _, name := range s.Missed {
		all = append(all, missing(name))
	}
	return all
}

// once asks once, not for ever.
func (ask Manager) once(ctx context.Context) (*Look, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, oneLook, fmt.Errorf("it has not answered for %v", oneLook))
	defer cancel()
	return ask(ctx)
}
