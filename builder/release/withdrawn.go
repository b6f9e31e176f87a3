package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

// reaches reports whether machines of channel c take what channel from names, too.
func reaches(from, c manifest.Channel) bool {
	all := manifest.Channels()
	return slices.Index(all, from) <= slices.Index(all, c)
}

// recordWithdrawn writes into the manifest that channels do not name a release any
// more. A version that can neither be offered nor published again is left out.
func (s *site) recordWithdrawn(ctx context.Context, m *manifest.Manifest, v contract.Version, from []manifest.Channel) error {
	there, err := Directory(s.dir).Versions(ctx)
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(m.Withdrawn), func(w manifest.Withdrawal) bool {
		return w.Version < m.Stable.Version && w.Version < v && !slices.Contains(there, w.Version)
	})
	for _, c := range from {
		kept = append(kept, manifest.Withdrawal{Channel: c, Version: v})
	}
	m.SetWithdrawn(kept)
	return nil
}

// offerAgain takes a release off the list of those that were withdrawn: anyone who
// publishes has asked for it by its version.
func offerAgain(m *manifest.Manifest, v contract.Version, note func(string, ...any)) {
	rest := slices.DeleteFunc(slices.Clone(m.Withdrawn), func(w manifest.Withdrawal) bool { return w.Version == v })
	if len(rest) < len(m.Withdrawn) {
		note("release %s was withdrawn before, and is offered again", v)
		m.SetWithdrawn(rest)
	}
}

// older returns the release that takes the place of a version in channel c: to, or the
// newest one that is older and that machines take. Without to, one that was withdrawn
// before is passed over, and one that only less tried channels than c name.
func (s *site) older(ctx context.Context, m *manifest.Manifest, c manifest.Channel, v, to contract.Version) (contract.Version, error) {
	all, err := Directory(s.dir).Versions(ctx)
	if err != nil {
		return 0, err
	}
	slices.Sort(all)
	for _, other := range slices.Backward(all) {
		if other >= v || to != 0 && other != to {
			continue
		}
		p, err := readPublished(ctx, Directory(s.dir), other, s.key, s.now)
		if err == nil {
			err = s.takeable(p)
		}
		if err == nil {
			err = s.whole(ctx, p)
		}
		if err == nil && to == 0 {
			err = passedOver(m, c, other)
		}
		if err == nil {
			return other, nil
		}
		s.note("release %s cannot take its place: %v", other, err)
	}
	if to != 0 {
		return 0, fmt.Errorf("release %s is not there, not good, or not older than %s: 'halogen release list' shows what there is", to, v)
	}
	return 0, nil
}

// passedOver says why a release does not take the place of one that channel c names
// unless it is asked for.
func passedOver(m *manifest.Manifest, c manifest.Channel, other contract.Version) error {
	if slices.ContainsFunc(m.Withdrawn, func(w manifest.Withdrawal) bool { return w.Version == other }) {
		return fmt.Errorf("it was withdrawn itself (--to %s offers it again)", other)
	}
	for _, from := range manifest.Channels() {
		if m.Entry(from).Version != other {
			continue
		}
		if reaches(from, c) {
			return nil
		}
		return fmt.Errorf("it is on trial in %s (--to %s offers it to %s)", from, other, c)
	}
	return nil
}

// withdrawn adds the releases that machines may have though no channel names them any
// more. One that is gone or damaged cannot be compared with, which is said.
func (s *site) withdrawn(ctx context.Context, to map[contract.Version]*published) {
	if s.manifest == nil {
		return
	}
	for _, w := range s.manifest.Withdrawn {
		if _, seen := to[w.Version]; seen {
			continue
		}
		p, err := readPublished(ctx, Directory(s.dir), w.Version, s.key, s.now)
		switch {
		case err == nil:
			to[w.Version] = p
		case !errors.Is(err, fs.ErrNotExist):
			s.note("WARNING: release %s was withdrawn, and whether its machines take this one cannot be told: %v", w.Version, err)
		}
	}
}

// afterWithdrawn refuses a version that machines which took a withdrawn release would
// never take, since theirs is as new.
func afterWithdrawn(m *manifest.Manifest, v contract.Version, c manifest.Channel) error {
	for _, w := range m.Withdrawn {
		switch {
		case w.Version == v:
			return fmt.Errorf("release %s was published and withdrawn: give the new one a version of its own, or offer the old one again with 'halogen release promote %[1]s --channel %s'", v, c)
		case w.Version > v && reaches(w.Channel, c):
			return fmt.Errorf("version %s is not newer than %s, which was withdrawn from %s: machines that took that one keep it until something newer comes, so give this one a version above %[2]s", v, w.Version, w.Channel)
		}
	}
	return nil
}
