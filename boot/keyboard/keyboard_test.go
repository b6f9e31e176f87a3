package keyboard

import (
	"slices"
	"testing"
	"unicode/utf8"
)

// Every layout has one character for each key, and each letter of a recovery key can be
// typed on it.
func TestLayouts(t *testing.T) {
	arriving := []rune(us)
	for _, l := range Layouts() {
		if n := utf8.RuneCountInString(l.keys); n != len(us) {
			t.Errorf("%s has %d keys, want %d", l.Name, n, len(us))
		}
		from := arriving
		if !l.latin() {
			from = []rune(l.keys)
		}
		for _, letter := range "cbdefghijklnrtuv" {
			if !slices.ContainsFunc(from, func(r rune) bool { return l.Meant(r) == letter }) {
				t.Errorf("%s has no %c", l.Name, letter)
			}
		}
		if got := l.Meant('\x00'); got != 0 {
			t.Errorf("%s: NUL means %q", l.Name, got)
		}
	}
}

func TestMeant(t *testing.T) {
	for name, pairs := range map[string]string{
		"Dvorak":    "icIcnb.v>v'-\"-",
		"Turkish Q": "'iii",
		"Bépo":      ",g<g8-;n:n",
		"Russian":   "сcСcё`мvЁ`",
		"Greek":     "ψcΨcσsςw",
	} {
		layouts := Layouts()
		i := slices.IndexFunc(layouts, func(l Layout) bool { return l.Name == name })
		for rest := []rune(pairs); len(rest) > 1; rest = rest[2:] {
			if got := layouts[i].Meant(rest[0]); got != rest[1] {
				t.Errorf("%s: %c is %c, want %c", name, rest[0], got, rest[1])
			}
		}
	}
}

func TestDash(t *testing.T) {
	for _, r := range "-‐‑‒–—―−_/?6=" {
		if !Dash(r) {
			t.Errorf("%c is no dash", r)
		}
	}
	for _, r := range "acz0189.,;:\x00 ~" {
		if Dash(r) {
			t.Errorf("%q is a dash", r)
		}
	}
}
