package keyboard

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Each keymap has every key, and types all that a command needs.
func TestKeymaps(t *testing.T) {
	for _, k := range keymaps {
		for level, keys := range k.levels {
			if n := utf8.RuneCountInString(keys); n != len(keycodes) {
				t.Errorf("%s, level %d: %d keys, want %d", k.Name, level, n, len(keycodes))
			}
		}
		for r := rune('!'); r <= '~'; r++ {
			if r != '`' && !strings.ContainsRune(strings.Join(k.levels[:], ""), r) && !slices.Contains(lacking[k.Name], string(r)) {
				t.Errorf("%s has no %c", k.Name, r)
			}
		}
		for _, name := range []string{k.Name, strings.ToUpper(k.Name)} {
			if found, err := FindKeymap(name); err != nil || found.Name != k.Name {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := FindKeymap("klingon"); err == nil || !strings.Contains(err.Error(), "dvorak") {
		t.Errorf("%v", err)
	}
}

// lacking is what a keyboard has on a key that is none of these: AltGr and the space bar.
var lacking = map[string][]string{"bepo": {"_"}}

// Both tables of a layout have the same keys.
func TestKeymapIsLayout(t *testing.T) {
	for _, k := range keymaps {
		for _, l := range layouts {
			if l.xkb == k.xkb && l.xkb != "fr(bepo)" && l.keys != k.levels[0] { // whose dead key types its accent
				t.Errorf("%s: %q and %q", k.xkb, l.keys, k.levels[0])
			}
		}
	}
}

// The kernel's own table of the US keyboard is what it is told for that: linux/drivers/tty/vt/
// defkeymap.map.
func TestEntries(t *testing.T) {
	k, err := FindKeymap("us")
	if err != nil {
		t.Fatal(err)
	}
	entries := k.Entries()
	for _, want := range []Entry{
		{plainTable, 16, 0x0b71}, {shiftTable, 16, 0x0b51}, {controlTable, 16, 0x0011}, {altTable, 16, 0x0871}, // q
		{plainTable, 2, 0x0031}, {shiftTable, 2, 0x0021}, {altTable, 2, 0x0831}, // 1
		{plainTable, 53, 0x002f}, {shiftTable, 53, 0x003f}, // slash
	} {
		if !slices.Contains(entries, want) {
			t.Errorf("no %+v", want)
		}
	}
	k, err = FindKeymap("de")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Entry{{plainTable, 39, 0x0bf6}, {altGrTable, 18, 0x20ac ^ 0xf000}, {altGrTable, 16, 0x0040}, {controlTable, 44, 0x0019}} { // ö, €, @, Ctrl+y
		if !slices.Contains(k.Entries(), want) {
			t.Errorf("de: no %+v", want)
		}
	}
}

// What the firmware's variable holds is a keymap, or refused.
func FuzzParseRemembered(f *testing.F) {
	for _, k := range keymaps {
		f.Add(k.Remember())
	}
	f.Add([]byte("keymap 1 de\x00"))
	f.Add([]byte("keymap 2 de"))
	f.Add([]byte(strings.Repeat("k", 1<<10)))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseRemembered(text)
		if err == nil && !strings.EqualFold(string(text), string(k.Remember())) {
			t.Errorf("%q: %q, %v", text, k.Name, err)
		}
	})
}
