package release

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
)

var usualPlan = Plan{Waves: []int{1, 5, 20, 50, 100}, Limit: 5, Least: 10}

func TestNext(t *testing.T) {
	for _, tt := range []struct {
		percent, kept, failed int
		want                  int
		why                   string
	}{
		{0, 0, 0, 0, "stays stopped"},
		{0, 1000, 0, 0, "stays stopped"},
		{1, 9, 0, 1, "9 new reports of 10"},
		{1, 10, 0, 5, "goes from 1 to 5 %"},
		{3, 9, 0, 3, "9 new reports of 10"}, // somebody has set it by hand
		{3, 15, 0, 5, "goes from 3 to 5 %"},
		{5, 19, 0, 5, "19 new reports of 20"},
		{50, 149, 0, 50, "149 new reports of 150"},
		{50, 480, 20, 100, "goes from 50 to 100 %"},
		{1, 1, 1, 0, "STOPPED: 1 of 2"},
		{20, 100, 6, 0, "STOPPED: 6 of 106"},
		{0, 100, 6, 0, "stays stopped"},
		{100, 100, 5, 100, "is for all machines"},
		{100, 100, 6, 0, "STOPPED: 6 of 106"},
	} {
		next, why := usualPlan.Next(tt.percent, tt.kept, tt.failed)
		if next != tt.want || !strings.Contains(why, tt.why) {
			t.Errorf("at %d %% with %d and %d: %d %%, %q", tt.percent, tt.kept, tt.failed, next, why)
		}
	}
	held := usualPlan
	held.Hold = "not all was read"
	for percent, want := range map[int]int{1: 1, 50: 50} {
		if next, why := held.Next(percent, 1000, 0); next != want || !strings.Contains(why, held.Hold) {
			t.Errorf("held at %d %%: %d %%, %q", percent, next, why)
		}
	}
	if next, _ := held.Next(50, 0, 1000); next != 0 {
		t.Errorf("held, and all fail: %d %%", next)
	}
	patient := Plan{Waves: []int{10, 100}, Limit: 5, Least: 20}
	if next, _ := patient.Next(10, 0, 1); next != 10 {
		t.Errorf("the first report is a failure: %d %%", next)
	}
	for _, p := range []Plan{
		{Limit: 5, Least: 1}, {Waves: []int{0, 100}, Least: 1}, {Waves: []int{10, 50}, Least: 1}, {Waves: []int{10, 5, 100}, Least: 1},
		{Waves: []int{5, 5, 100}, Least: 1}, {Waves: []int{100}, Limit: 101, Least: 1}, {Waves: []int{100}},
	} {
		if p.Check() == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}

// The manifest changes when the share does, and not otherwise: then no key is needed.
func TestAdvance(t *testing.T) {
	w := newWorld(t)
	var o Options
	for v := contract.Version(1); v <= 2; v++ {
		o = w.options(w.build(v, "", ""), "")
		w.publish(o)
	}
	m, plan := w.manage(o), usualPlan
	plan.Every = 24 * time.Hour
	begin := m.Now
	promote := func(percent int) {
		t.Helper()
		if err := Promote(t.Context(), m, 2, manifest.Stable, Rollout{true, percent}); err != nil {
			t.Fatal(err)
		}
	}
	promote(1)
	for _, tt := range []struct {
		hours          int
		kept, failed   int
		said, manifest string
	}{
		{0, 500, 0, "release 2 on stable waits at 1 % of the machines: a wave lasts 24h0m0s", "STABLE=2\nROLLOUT_STABLE=1\n"},
		{24, 500, 0, "release 2 on stable goes from 1 to 5 %", "STABLE=2\nROLLOUT_STABLE=5\n"},
		{24, 600, 0, "release 2 on stable waits at 5 % of the machines: a wave lasts", "STABLE=2\nROLLOUT_STABLE=5\n"},
		{48, 519, 0, "release 2 on stable waits at 5 % of the machines: 19 new reports of 20", "STABLE=2\nROLLOUT_STABLE=5\n"},
		{48, 520, 0, "release 2 on stable goes from 5 to 20 %", "STABLE=2\nROLLOUT_STABLE=20\n"},
		{49, 530, 5, "release 2 on stable STOPPED: 5 of 15", "STABLE=2\nROLLOUT_STABLE=0\n"},
		{49, 530, 5, "release 2 on stable stays stopped", "STABLE=2\nROLLOUT_STABLE=0\n"},
		{99, 5000, 5, "release 2 on stable stays stopped", "STABLE=2\nROLLOUT_STABLE=0\n"},
		{-1, 5000, 5, "", ""}, // what the message says
		{100, 5000, 5, "release 2 on stable waits at 1 %", "STABLE=2\nROLLOUT_STABLE=1\n"},
		{124, 5010, 5, "release 2 on stable goes from 1 to 5 % of the machines: 10 trials were kept, 0 have failed", "STABLE=2\nROLLOUT_STABLE=5\n"},
	} {
		if tt.hours < 0 {
			promote(1)
			continue
		}
		m.Now = begin.Add(time.Duration(tt.hours) * time.Hour)
		said, err := Advance(t.Context(), m, manifest.Stable, plan, func(v contract.Version) (int, int) {
			if v != 2 {
				t.Errorf("asked for the reports of %s", v)
			}
			return tt.kept, tt.failed
		})
		if err != nil || !strings.HasPrefix(said, tt.said) {
			t.Errorf("%q, %v; want %q", said, err, tt.said)
		}
		if text := string(mustRead(t, filepath.Join(directory(o), "manifest.env"))); !strings.HasPrefix(text, tt.manifest) {
			t.Errorf("after %q the manifest is %q", said, text)
		}
	}
	if _, err := Advance(t.Context(), m, manifest.Alpha, usualPlan, nil); err == nil || !strings.Contains(err.Error(), "names no release") {
		t.Errorf("a channel without a release: %v", err)
	}
}
