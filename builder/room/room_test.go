package room

import (
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

const mib = 1 << 20

// a is a release whose image and UKI have so many MiB, for slots of 1 GiB.
func a(v contract.Version, image, uki int64) Release {
	return Release{Version: v, Image: image * mib, UKI: uki * mib, BootManager: 2 * mib, Slot: 1024 * mib, ESP: layout.ESPSize}
}

func TestPlan(t *testing.T) {
	const ukiRoom = (512 - 72 - 4*2) / 2 // 216
	for _, c := range []struct {
		name         string
		is           Release
		past         []Release
		system, uki  int // percent
		left, ukis   int64
		used, warned int
	}{
		{"the first", a(5, 512, 59), nil, 50, 27, -1, -1, 0, 0},
		{"one before", a(5, 512, 59), []Release{a(4, 502, 58)}, 50, 27, 51, ukiRoom - 59, 1, 0},
		{"no order, and gaps", a(50, 540, 60), []Release{a(9, 520, 60), a(3, 500, 60), a(30, 519, 60)}, 52, 27, 36, -1, 3, 0},
		{"itself and a later one", a(5, 512, 59), []Release{a(5, 512, 59), a(6, 900, 99), a(4, 502, 59)}, 50, 27, 51, -1, 1, 0},
		{"one twice", a(5, 512, 59), []Release{a(4, 502, 59), a(4, 502, 59)}, 50, 27, 51, -1, 1, 0},
		{"smaller", a(5, 512, 59), []Release{a(4, 700, 80)}, 50, 27, -1, -1, 1, 0},
		{"nearly full", a(5, 820, 173), []Release{a(4, 810, 163)}, 80, 80, 20, (ukiRoom - 173) / 10, 1, 2},
		{"not quite", a(5, 819, 172), []Release{a(4, 818, 172)}, 79, 79, 205, -1, 1, 0},
		{"full", a(5, 1024, 59), []Release{a(4, 1000, 59)}, 100, 27, 0, -1, 1, 1},
		{"more than full", a(5, 1030, 300), []Release{a(4, 1000, 200)}, 100, 100, 0, 0, 1, 2},
	} {
		p := New(c.is, c.past)
		left := func(s *Share) int64 {
			if s.Left == nil {
				return -1
			}
			return *s.Left
		}
		if p.System.Percent != c.system || p.UKI.Percent != c.uki || left(&p.System) != c.left || left(p.UKI) != c.ukis || p.Past != c.used {
			t.Errorf("%s: %+v, %d left; %+v, %d left", c.name, p, left(&p.System), *p.UKI, left(p.UKI))
		}
		lines := strings.Join(p.Lines(), "\n")
		if n := strings.Count(lines, "WARNING: "); n != c.warned || strings.Contains(lines, "more fit") != (c.left >= 0 || c.ukis >= 0) {
			t.Errorf("%s: %d warnings\n%s", c.name, n, lines)
		}
	}
}

// Growth is judged by the last releases alone, of which old ones say little.
func TestPlanForgets(t *testing.T) {
	past := []Release{a(1, 1, 1)}
	for v := range contract.Version(MaxPast) {
		past = append(past, a(v+2, 500+int64(v), 50))
	}
	slices.Reverse(past)
	if p := New(a(99, 500+MaxPast, 50), past); p.System.Growth != mib || p.Past != MaxPast {
		t.Errorf("%+v", p)
	}
}

// The ESP is the smallest that a machine has, and unknown where nothing tells.
func TestSmallest(t *testing.T) {
	large, old := a(5, 512, 240), a(4, 512, 200)
	large.ESP = 1 << 30
	if p := New(large, nil); p.ESP != 1<<30 || p.UKI.Percent != 50 {
		t.Errorf("%+v", p)
	}
	if p := New(large, []Release{old}); p.ESP != layout.ESPSize || p.UKI.Percent != 100 {
		t.Errorf("%+v", p)
	}
	if err := Fits(large, large); err != nil {
		t.Error(err)
	}
	if err := Fits(large, old); err == nil || !strings.Contains(err.Error(), "240.0 MiB, and machines with an EFI system partition of 512 MiB have room for 216.0 MiB") {
		t.Error(err)
	}
	// What a UKI says of it, for the releases after it.
	able := Abilities(2<<30, []Release{large, old})
	if able.ESP() != 2<<30 || able.SmallestESP() != layout.ESPSize || Abilities(layout.ESPSize, []Release{large}) != contract.Own() {
		t.Errorf("%+v", able)
	}
	large.ESP = 0
	if p := New(large, nil); p.UKI != nil || len(p.Lines()) != 1 {
		t.Errorf("%+v", p)
	}
	if ForUKI(layout.ESPSize, 1<<40) != 0 {
		t.Error("a boot manager takes more than there is")
	}
}
