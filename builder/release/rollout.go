package release

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

// A Plan says by which waves a release reaches all machines.
type Plan struct {
	// Waves are shares of the machines in percent, ascending. The last is 100.
	Waves []int
	// Limit is how many percent of the trials may fail.
	Limit int
	// Least is how many reports the first wave has to bring before the next one. A later
	// one has to bring half as many more as its share is larger: not all machines are on
	// every day.
	Least int
	// Hold is why no more machines get it now; empty: they may. It does not keep a release
	// from being stopped.
	Hold string
}

// Check reports the first thing that is wrong with the plan.
func (p Plan) Check() error {
	switch {
	case len(p.Waves) == 0 || p.Waves[0] < 1 || p.Waves[len(p.Waves)-1] != 100:
		return errors.New("the waves are shares from 1 to 100 percent, and the last is 100, like 1,5,20,50,100")
	case !slices.IsSorted(p.Waves) || len(slices.Compact(slices.Clone(p.Waves))) != len(p.Waves):
		return errors.New("each wave is larger than the one before it, like 1,5,20,50,100")
	case p.Limit < 0 || p.Limit > 100:
		return fmt.Errorf("%d percent is no limit for failures: want 0 to 100", p.Limit)
	case p.Least < 1:
		return errors.New("the first wave has to bring one report at least")
	}
	return nil
}

// Next says which share of the machines takes a release from now on, 0 to 100, and why.
// Reports are kept and failed trials.
//
// Failures count against Least reports at the least: one machine that fails first is no
// reason to stop, two of twenty are.
func (p Plan) Next(percent, kept, failed int) (next int, why string) {
	total := kept + failed
	if percent == 0 { // by an earlier call, or by somebody
		return 0, fmt.Sprintf("stays stopped (%d trials were kept, %d have failed): 'halogen release promote' with --rollout %d begins with it again", kept, failed, p.Waves[0])
	}
	if failed*100 > p.Limit*max(total, p.Least) {
		return 0, fmt.Sprintf("STOPPED: %d of %d trials have failed, and %d %% may. No more machines take it; 'halogen release withdraw' takes it back", failed, total, p.Limit)
	}
	if percent == 100 {
		return 100, fmt.Sprintf("is for all machines: %d trials were kept, %d have failed", kept, failed)
	}
	if p.Hold != "" {
		return percent, fmt.Sprintf("waits at %d %% of the machines: %s", percent, p.Hold)
	}
	if want := max(p.Least, p.Least*percent/p.Waves[0]/2); total < want {
		return percent, fmt.Sprintf("waits at %d %% of the machines: %d reports of %d", percent, total, want)
	}
	next = p.Waves[slices.IndexFunc(p.Waves, func(wave int) bool { return wave > percent })]
	return next, fmt.Sprintf("goes from %d to %d %% of the machines: %d trials were kept, %d have failed", percent, next, kept, failed)
}

// errUnchanged ends a change that there is nothing to do for.
var errUnchanged = errors.New("nothing to change")

// Advance brings the release that a channel names to its next wave, or stops it. reports
// says how many of its trials were kept and failed. It returns what was decided; where the
// share stays as it is, nothing is written and no key is needed.
func Advance(ctx context.Context, o Manage, c manifest.Channel, p Plan, reports func(v contract.Version) (kept, failed int)) (decided string, err error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	err = o.change(ctx, func(_ *site, m *manifest.Manifest) error {
		e := m.Entry(c)
		if e.Version == 0 {
			return fmt.Errorf("%s names no release: 'halogen release list' shows what is there", c)
		}
		percent := 100
		if e.Limited {
			percent = e.Percent
		}
		kept, failed := reports(e.Version)
		next, why := p.Next(percent, kept, failed)
		decided = fmt.Sprintf("release %s on %s %s", e.Version, c, why)
		if next == percent {
			return errUnchanged
		}
		return m.Set(c, manifest.Entry{Version: e.Version, Limited: next != 100, Percent: next % 100})
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return decided, err
}
