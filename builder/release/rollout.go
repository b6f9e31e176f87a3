package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	// one has to bring half as many more as it adds to the share: not all machines are on
	// every day.
	Least int
	// Every is how long a wave lasts at the least: failures are told a day late, and by
	// machines that went back.
	Every time.Duration
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
// Reports are the kept and failed trials since it got the share that it has: those of
// before, or of another channel, say nothing of this wave.
//
// Failures count against Least reports at the least: one machine that fails first is no
// reason to stop, two of twenty are.
func (p Plan) Next(percent, kept, failed int) (next int, why string) {
	total := kept + failed
	if percent == 0 { // by an earlier call, or by somebody
		return 0, fmt.Sprintf("stays stopped: 'halogen release promote' with --rollout %d begins with it again, and counts what is told from then on", p.Waves[0])
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
	if want := p.wants(percent); total < want {
		return percent, fmt.Sprintf("waits at %d %% of the machines: %d new reports of %d", percent, total, want)
	}
	next = p.Waves[slices.IndexFunc(p.Waves, func(wave int) bool { return wave > percent })]
	return next, fmt.Sprintf("goes from %d to %d %% of the machines: %d trials were kept, %d have failed", percent, next, kept, failed)
}

// wants is how many reports a share has to bring.
func (p Plan) wants(percent int) int {
	before := 0
	for _, wave := range p.Waves {
		if wave < percent {
			before = wave
		}
	}
	return max(p.Least, p.Least*(percent-before)/p.Waves[0]/2)
}

// errUnchanged ends a change that there is nothing to do for.
var errUnchanged = errors.New("nothing to change")

// Advance brings the release that a channel names to its next wave, or stops it. reports
// says how many of its trials were kept and failed on that channel. It returns what was
// decided; where the share stays as it is, the manifest is not written and no key is needed.
func Advance(ctx context.Context, o Manage, c manifest.Channel, p Plan, reports func(v contract.Version) (kept, failed int)) (decided string, err error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	var waves progress
	err = o.change(ctx, func(_ *site, m *manifest.Manifest) error {
		e := m.Entry(c)
		if e.Version == 0 {
			return fmt.Errorf("%s names no release: 'halogen release list' shows what is there", c)
		}
		percent := 100
		if e.Limited {
			percent = e.Percent
		}
		var err error
		if waves, err = readProgress(o.Directory); err != nil {
			return err
		}
		kept, failed := reports(e.Version)
		w := waves.of(c, wave{Version: e.Version, Percent: percent, Kept: kept, Failed: failed, Time: o.Now})
		if left := w.Time.Add(p.Every - p.Every/24).Sub(o.Now); left > 0 && p.Hold == "" {
			p.Hold = fmt.Sprintf("a wave lasts %s at the least, and this one since %s UTC", p.Every, w.Time.UTC().Format(time.DateTime))
		}
		next, why := p.Next(percent, kept-w.Kept, failed-w.Failed)
		decided = fmt.Sprintf("release %s on %s %s", e.Version, c, why)
		waves.Channels[c] = w
		if next == percent {
			return errUnchanged
		}
		waves.Channels[c] = wave{Version: e.Version, Percent: next, Kept: kept, Failed: failed, Time: o.Now}
		return m.Set(c, manifest.Entry{Version: e.Version, Limited: next != 100, Percent: next % 100})
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	if err != nil {
		return decided, err
	}
	return decided, waves.keep(o.Directory)
}
