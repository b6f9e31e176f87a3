package release

import (
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

// A release that its rollout has stopped is on no new machine either.
func TestStoppedIsNotOffered(t *testing.T) {
	whole := func(v contract.Version) manifest.Entry { return manifest.Entry{Version: v} }
	share := func(v contract.Version, percent int) manifest.Entry {
		return manifest.Entry{Version: v, Limited: true, Percent: percent}
	}
	for _, c := range []struct {
		name    string
		m       manifest.Manifest
		channel manifest.Channel
		want    contract.Version // 0: none
	}{
		{"the newest", manifest.Manifest{Stable: whole(3), Beta: whole(4)}, manifest.Beta, 4},
		{"a first wave", manifest.Manifest{Stable: whole(3), Beta: share(4, 1)}, manifest.Beta, 4},
		{"beta's is stopped", manifest.Manifest{Stable: whole(3), Beta: share(4, 0)}, manifest.Beta, 3},
		{"beta's is stopped, for stable", manifest.Manifest{Stable: whole(3), Beta: share(4, 0)}, manifest.Stable, 3},
		{"stopped on beta, and good on stable", manifest.Manifest{Stable: whole(4), Beta: share(4, 0)}, manifest.Beta, 4},
		{"two are stopped", manifest.Manifest{Stable: whole(3), Beta: share(4, 0), Alpha: share(5, 0)}, manifest.Alpha, 3},
		{"stable's is stopped", manifest.Manifest{Stable: share(3, 0)}, manifest.Stable, 0},
		{"all are stopped", manifest.Manifest{Stable: share(3, 0), Beta: share(4, 0)}, manifest.Beta, 0},
	} {
		e, err := offered(&c.m, c.channel)
		if e.Version != c.want || (err == nil) != (c.want != 0) || err != nil && !strings.Contains(err.Error(), "'halogen release withdraw'") {
			t.Errorf("%s: release %s, %v; want %s", c.name, e.Version, err, c.want)
		}
	}
}
