package luks2

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/keyboard"
)

// typedOn is what arrives for each letter of a recovery key where the keyboard of a
// layout says so, found out by hand: from where the layout has the letter on a screen's
// keyboard, which is taken for a US one; and, for layouts without Latin letters, from
// the keys that bear them at the other end of a serial line.
var typedOn = map[string]string{
	// the letters:   cbdefghijklnrtuv
	"Dvorak":        "inhdyujgcvplokf.",
	"Colemak":       "cbgkethlynujsfiv",
	"Bépo":          "hqif/,.dpbo;ljsu",
	"Neo":           "rn;foius/yejklaw",
	"Turkish Q":     "cbdefgh'jklnrtuv",
	"Turkish F":     "v,ydqwoszjliuhac",
	"Greek":         "ψβδεφγηιξκλνρτθω",
	"Hebrew":        "בנגקכעיןחלךמראוה",
	"Russian":       "сивуапршолдткегм",
	"Ukrainian":     "сивуапршолдткегм",
	"Arabic":        "ؤﻻيثبلاهتنمىقفعر",
	"German":        "cbdefghijklnrtuv",
	"capital Greek": "ΨΒΔΕΦΓΗΙΞΚΛΝΡΤΘΩ",
}

func on(layout, key string) string {
	letters := []rune(typedOn[layout])
	return strings.Map(func(r rune) rune {
		if i := strings.IndexRune(modhex, r); i >= 0 {
			return letters[i]
		}
		return ' '
	}, key)
}

func TestAnyKeyboard(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for layout, letters := range typedOn {
		if n := len([]rune(letters)); n != len(modhex) {
			t.Fatalf("%s: %d letters", layout, n)
		}
		for range 8 {
			k, err := NewRecoveryKey(random)
			if err != nil {
				t.Fatal(err)
			}
			typed := on(layout, string(k.Passphrase()))
			if got, err := ParseRecoveryKey([]byte(typed)); err != nil || got != k {
				t.Errorf("%s: %q is %s, %v; want %s", layout, typed, got.Passphrase(), err, k.Passphrase())
			}
			r := ReadTyped([]byte(typed))
			if string(r.Letters) != strings.ReplaceAll(string(k.Passphrase()), "-", "") || r.Layout == "" && layout != "German" {
				t.Errorf("%s is shown as %s, on %q", layout, r.Letters, r.Layout)
			}
		}
	}
}

// tables are what the keys of a screen's keyboard type alone, and with shift, in the kernel's tables.
type tables map[[2]uint8]rune

func (k tables) set(t *testing.T, name string) {
	t.Helper()
	m, err := keyboard.FindKeymap(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range m.Entries() {
		switch {
		case e.Table > 1: // with AltGr, Ctrl or Alt
		case e.Value>>8 > 0x0b: // KT_LETTER is the last type of a character (linux/keyboard.h)
			k[[2]uint8{e.Table, e.Key}] = rune(e.Value ^ 0xf000)
		default:
			k[[2]uint8{e.Table, e.Key}] = rune(e.Value & 0xff)
		}
	}
}

// While a recovery key is asked for the keyboard is taken for a US one, so that the key can be typed
// as it is printed, whatever keymap was in force, the right one or one that somebody has put into
// the firmware's variable, and whichever keyboard it is.
func TestAnyKeymap(t *testing.T) {
	k, err := NewRecoveryKey(rand.NewChaCha8([32]byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(k.Passphrase()), "-", "")
	for _, physical := range keyboard.Keymaps() {
		printed := tables{}
		printed.set(t, physical)
		for _, inForce := range keyboard.Keymaps() {
			kernel := tables{}
			kernel.set(t, inForce)
			kernel.set(t, "us") // hw.Console.Positions
			for table, key := range []string{text, strings.ToUpper(text)} {
				typed := strings.Map(func(want rune) rune {
					for at, letter := range printed {
						if letter == want && at[0] == uint8(table) {
							return kernel[at]
						}
					}
					t.Fatalf("%s has no %c", physical, want)
					return 0
				}, key)
				keys, err := ParseRecoveryKeys([]byte(typed))
				if err != nil || !slices.Contains(keys, k) {
					t.Errorf("a %s keyboard, taken for %s: %q is another key: %v", physical, inForce, typed, err)
				}
			}
		}
	}
}

// One letter wrong, two exchanged, or two groups exchanged: the group is named, always.
func TestChecks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	k, err := NewRecoveryKey(rand.NewChaCha8([32]byte{2}))
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.ReplaceAll(string(k.Passphrase()), "-", "")
	wrong := func(text string) []int {
		r := ReadTyped([]byte(text))
		if again := r.Wrong(false); len(again) > 0 {
			t.Errorf("%s without checks: %d", text, again)
		}
		return r.Wrong(true)
	}
	if got := wrong(whole); len(got) > 0 {
		t.Errorf("the key itself: %d", got)
	}
	for i := range whole {
		for _, c := range []byte(modhex) {
			b := []byte(whole)
			if b[i] == c {
				continue
			}
			b[i] = c
			if got := wrong(string(b)); !slices.Equal(got, []int{i/8 + 1}) {
				t.Errorf("letter %d is %c: %d", i, c, got)
			}
		}
		j := i/8*8 + random.IntN(8)
		b := []byte(whole)
		if b[i], b[j] = b[j], b[i]; b[i] == b[j] {
			continue
		}
		if got := wrong(string(b)); !slices.Equal(got, []int{i/8 + 1}) {
			t.Errorf("letters %d and %d exchanged: %d", i, j, got)
		}
	}
	if got := wrong(whole[8:16] + whole[:8] + whole[16:]); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("groups exchanged: %d", got)
	}
	r := ReadTyped([]byte(whole[:8] + "z" + whole[9:12]))
	if got := r.Wrong(false); !slices.Equal(got, []int{2}) {
		t.Errorf("a foreign letter: %d", got)
	}
}

// A key without checks that is one on another layout, too, is tried as both.
func TestSeveralReadings(t *testing.T) {
	text := strings.Repeat("c", RecoveryLetters) // a key, and on Dvorak one of the letter j
	keys, err := ParseRecoveryKeys([]byte(text))
	if err != nil || len(keys) < 2 || len(keys) > maxReadings {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	if got := string(keys[0].Passphrase()[:8]); got != "cccccccc" {
		t.Errorf("first is %s", got)
	}
}

func TestConfirms(t *testing.T) {
	random := rand.NewChaCha8([32]byte{3})
	k, err := NewRecoveryKey(random)
	if err != nil {
		t.Fatal(err)
	}
	text := string(k.Passphrase())
	parts := strings.Split(text, "-")
	seen := map[[2]int]bool{}
	for range 2000 {
		groups, err := ConfirmingGroups(random)
		if err != nil || groups[0] < 1 || groups[0] >= groups[1] || groups[1] > recoveryGroups {
			t.Fatalf("groups %d, %v", groups, err)
		}
		if seen[groups] {
			continue
		}
		seen[groups] = true
		right := parts[groups[0]-1] + " " + parts[groups[1]-1]
		for _, typed := range []string{right, strings.ToUpper(right), on("Dvorak", right), on("Greek", right), text} {
			if !k.Confirms([]byte(typed), groups) {
				t.Errorf("groups %d: %q does not confirm it", groups, typed)
			}
		}
		for _, typed := range []string{"", parts[groups[0]-1], parts[groups[1]-1] + parts[groups[0]-1], right[:16], right + "c", "c" + right, text[1:]} {
			if k.Confirms([]byte(typed), groups) {
				t.Errorf("groups %d: %q confirms it", groups, typed)
			}
		}
	}
	if len(seen) != recoveryGroups*(recoveryGroups-1)/2 {
		t.Errorf("%d pairs of groups come up", len(seen))
	}
}
