package keyboard

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// A Keymap is what the keys of a keyboard type, for the kernel's own console.
type Keymap struct {
	Name   string
	xkb    string // xkeyboard-config's name
	levels [3]string
}

// The kernel's tables that a keymap fills, by the modifiers that are held (KG_SHIFT 1,
// KG_ALTGR 2, KG_CTRL 4, KG_ALT 8; linux/keyboard.h).
const (
	plainTable   = 0
	shiftTable   = 1
	altGrTable   = 2
	controlTable = 4
	altTable     = 8
)

// Types of what a key does, in the high byte of its value (linux/keyboard.h): a character,
// one that Caps Lock turns into the capital, and one with the meta bit.
const (
	typeLatin  = 0x00 << 8
	typeMeta   = 0x08 << 8
	typeLetter = 0x0b << 8
	// unicodeMask is what a character beyond Latin-1 is combined with by exclusive or.
	unicodeMask = 0xf000
)

// An Entry is what a key does in one of the kernel's tables: a struct kbentry (ioctl_console(2),
// KDSKBENT).
type Entry struct {
	Table uint8
	Key   uint8 // its code
	Value uint16
}

// keycodes are those of the keys of us (linux/input-event-codes.h).
var keycodes = [...]uint8{
	41, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
	16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 43,
	30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
	44, 45, 46, 47, 48, 49, 50, 51, 52, 53,
	86,
}

// Keymaps lists the names of the keymaps, sorted.
func Keymaps() []string {
	names := make([]string, len(keymaps))
	for i := range keymaps {
		names[i] = keymaps[i].Name
	}
	slices.Sort(names)
	return names
}

// FindKeymap returns the keymap of a name, in upper or lower case.
func FindKeymap(name string) (Keymap, error) {
	for _, k := range keymaps {
		if strings.EqualFold(k.Name, name) {
			return k, nil
		}
	}
	return Keymap{}, fmt.Errorf("there is no keymap %q: %s", name, strings.Join(Keymaps(), " "))
}

// Entries are what the kernel is to be told of a keymap. Ctrl and Alt go by the letters, as
// the keymap has them.
func (k Keymap) Entries() (entries []Entry) {
	for level, table := range [3]uint8{plainTable, shiftTable, altGrTable} {
		for i, r := range []rune(k.levels[level]) {
			if r == ' ' {
				continue
			}
			entries = append(entries, Entry{table, keycodes[i], value(r)})
			if table != plainTable || r > unicode.MaxASCII {
				continue
			}
			entries = append(entries, Entry{altTable, keycodes[i], typeMeta | uint16(r)})
			if 'a' <= r && r <= 'z' {
				entries = append(entries, Entry{controlTable, keycodes[i], typeLatin | uint16(r&0x1f)})
			}
		}
	}
	return entries
}

func value(r rune) uint16 {
	switch {
	case r > unicode.MaxLatin1:
		return uint16(r) ^ unicodeMask
	case unicode.IsLetter(r):
		return typeLetter | uint16(r)
	}
	return typeLatin | uint16(r)
}

// Variable is the EFI variable, of the namespace nextboot.Vendor, by which the recovery
// console tells the starts to come of a keymap. Anybody can write it: it says what the keys
// type before the system runs, and opens nothing.
const Variable = "HalogenKeymap"

// remembered is what comes before the name there: the form, and its version.
const remembered = "keymap 1 "

// maxRemembered bounds the variable's content, in bytes.
const maxRemembered = 64

// Remember is the variable's content for a keymap.
func (k Keymap) Remember() []byte { return []byte(remembered + k.Name) }

// ParseRemembered returns the keymap that a variable's content names.
func ParseRemembered(text []byte) (Keymap, error) {
	if len(text) > maxRemembered {
		return Keymap{}, fmt.Errorf("remembered keymap: %d bytes, more than %d", len(text), maxRemembered)
	}
	name, ok := strings.CutPrefix(string(text), remembered)
	if !ok {
		return Keymap{}, fmt.Errorf("remembered keymap: it does not begin with %q", remembered)
	}
	return FindKeymap(name)
}
