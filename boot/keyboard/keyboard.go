// Package keyboard finds out what somebody meant who types on a keyboard of another
// layout than the machine takes it for.
//
// A boot knows no layout but the US one, so that a screen's keyboard says which key was
// pressed, and not what is printed on it. At the other end of a serial line it is the
// other way round: letters of another alphabet arrive, from keys that bear Latin letters
// as well.
//
// It refuses to guess: it says what each layout makes of a character, and who asks knows
// which of it can be right.
package keyboard

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Layout is what the keys of a keyboard bear.
type Layout struct {
	Name string // for people
	xkb  string // xkeyboard-config's name
	keys string // what each key of us types
}

// Layouts lists the layouts that have Latin letters on other keys than a US keyboard has,
// or none at all. The slice is the caller's.
func Layouts() []Layout { return append([]Layout(nil), layouts...) }

// Meant returns the character that somebody meant whose typing arrived as a character:
// on a layout with Latin letters what its keyboard bears where a US keyboard has the
// character; on one without what a US keyboard bears where the layout has it. It is in
// lower case, and 0 where the layout knows no such character.
func (l *Layout) Meant(arrived rune) rune {
	from, to := us, l.keys
	arrived = Plain(arrived)
	if l.latin() {
		arrived = unshifted(arrived)
	} else {
		from, to = to, from
	}
	key := 0
	for _, r := range from {
		if r == arrived && r != ' ' {
			return Plain(at(to, key))
		}
		key++
	}
	return 0
}

// latin reports whether the layout has Latin letters: where a vowel is one, all are.
func (l *Layout) latin() bool { return strings.ContainsRune(l.keys, 'e') }

// at is the character of a key.
func at(keys string, key int) rune {
	for range key {
		_, size := utf8.DecodeRuneInString(keys)
		keys = keys[size:]
	}
	r, _ := utf8.DecodeRuneInString(keys)
	return r
}

// unshifted is what the key types without shift, as a US keyboard has it: somebody who
// types capitals holds the key down for letters that are elsewhere, too.
func unshifted(r rune) rune {
	const with, without = `~!@#$%^&*()_+{}|:"<>?`, "`1234567890-=[]\\;',./"
	if i := strings.IndexRune(with, r); i >= 0 {
		return rune(without[i])
	}
	return r
}

// Plain returns a letter in lower case. The i without a dot is what a Turkish keyboard
// has beside the other one, and is meant to be the same.
func Plain(r rune) rune {
	if r = unicode.ToLower(r); r == 'ı' {
		return 'i'
	}
	return r
}

// Dash reports whether a character is a dash of any kind: ASCII's, Unicode's hyphens,
// dashes and minus signs, or what a US keyboard has on a key that bears the dash on
// layouts which have the Latin letters where it has them (German /, French 6, Turkish =).
func Dash(r rune) bool {
	return unicode.Is(unicode.Pd, r) || strings.ContainsRune("-−_/?=+6^", r)
}
