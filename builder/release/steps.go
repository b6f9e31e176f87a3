package release

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
)

// SetStep makes a release on the server one that machines with older ones take before
// anything newer, or takes that back. It stays on the server as long as it is one.
func SetStep(ctx context.Context, o Manage, v contract.Version, on bool) error {
	return o.change(ctx, func(s *site, m *manifest.Manifest) error {
		at, is := slices.BinarySearch(m.Steps, v)
		steps := slices.Clone(m.Steps)
		switch {
		case is && on:
			return fmt.Errorf("release %s is a step already", v)
		case !is && !on:
			return fmt.Errorf("release %s is not a step", v)
		case !on:
			m.Steps = slices.Delete(steps, at, at+1)
			if err := s.stillSteps(ctx, m); err != nil {
				return err
			}
			o.Note("machines with releases older than %s go past it from now on", v)
			return nil
		}
		if slices.ContainsFunc(m.Withdrawn, func(w manifest.Withdrawal) bool { return w.Version == v }) {
			return fmt.Errorf("release %s was withdrawn, and a step would bring it to machines again: choose another one, or promote it first", v)
		}
		p, err := readPublished(ctx, o.Directory, v, s.key, o.Now)
		if err == nil {
			err = s.takeable(p)
		}
		if err == nil {
			err = s.whole(ctx, p)
		}
		if err != nil {
			return fmt.Errorf("release %s: %w", v, err)
		}
		m.Steps = slices.Insert(steps, at, v)
		o.Note("machines with releases older than %s take it before anything newer; those of a time before there were steps do not know of them", v)
		return nil
	})
}

// stillSteps refuses a manifest in which a channel names a release that needs a step and has
// none.
func (s *site) stillSteps(ctx context.Context, m *manifest.Manifest) error {
	for _, c := range manifest.Channels() {
		e := m.Entry(c)
		if e.Version == 0 {
			continue
		}
		p, err := readPublished(ctx, Directory(s.dir), e.Version, s.key, s.now)
		if err != nil {
			return fmt.Errorf("release %s: %w", e.Version, err)
		}
		if err := stepFor(m, p.release); err != nil {
			return err
		}
	}
	return nil
}

// withoutStep makes a release that is withdrawn no step: a newer one would bring it to
// machines again.
func withoutStep(m *manifest.Manifest, v contract.Version, note func(string, ...any)) {
	if at, is := slices.BinarySearch(m.Steps, v); is {
		m.Steps = slices.Delete(slices.Clone(m.Steps), at, at+1)
		note("WARNING: release %s is a step no more: 'halogen release step' names another one, if machines need one on the way", v)
	}
}

// stepBefore returns the newest step that is older than a version; 0: there is none.
func stepBefore(m *manifest.Manifest, v contract.Version) (step contract.Version) {
	for _, s := range m.Steps {
		if s < v {
			step = s
		}
	}
	return step
}

// stepFor refuses a release with entries for dbx that no step is before. A machine that was
// off while the channels named releases which know of them would refuse it, and each later
// one: no channel says what all machines have.
func stepFor(m *manifest.Manifest, r *release.Release) error {
	if len(r.Revocations) == 0 || stepBefore(m, r.Version) != 0 {
		return nil
	}
	return fmt.Errorf("release %s has entries for dbx, which machines refuse that have an older release than knows of them: make one that does a step first ('halogen release step')", r.Version)
}

// onTheWay returns the releases from which machines go to a version: in the place of
// all that are older than a step stands the step.
func (s *site) onTheWay(ctx context.Context, all map[contract.Version]*published, v contract.Version) (map[contract.Version]*published, error) {
	step := stepBefore(s.manifest, v)
	if step == 0 {
		return all, nil
	}
	p, err := readPublished(ctx, Directory(s.dir), step, s.key, s.now)
	if err != nil {
		return nil, fmt.Errorf("release %s, a step on the way to %s: %w", step, v, err)
	}
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(other contract.Version, _ *published) bool { return other < step })
	out[step] = p
	return out, nil
}

// checkSteps checks the releases that machines take on their way. seen are those that
// were checked.
func (v *verifier) checkSteps(ctx context.Context, seen []contract.Version) {
	for _, step := range v.manifest.Steps {
		if slices.Contains(seen, step) || ctx.Err() != nil {
			continue
		}
		if err := v.checkOne(ctx, step, nil); err != nil {
			v.fault(fmt.Errorf("release %s, a step that machines with older ones need: %w", step, err))
			continue
		}
		v.Note("release %s, a step, is good", step)
	}
}
