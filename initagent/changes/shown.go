package changes

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Shown is a name as it may be printed and pasted into a shell, which takes it as that name
// and as nothing else. One with what a shell knows is in single quotes; one that is not UTF-8,
// or has what steers a terminal or turns the direction of the text, is written $'...' with
// octal escapes (POSIX.1-2024, 2.2.4). A shell that does not know that takes it as a name that
// does not exist.
func Shown(name string) string {
	switch {
	case !printable(name):
		return "$'" + escaped(name) + "'"
	case name == "", name[0] == '-', name[0] == '=', strings.ContainsFunc(name, special):
		return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
	}
	return name
}

// special reports whether a character may mean something to a shell.
func special(r rune) bool {
	return r < utf8.RuneSelf && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:,@%=", r)
}

// printable reports whether all of a text can be seen, on one line.
func printable(text string) bool {
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		if !strconv.IsPrint(r) || r == utf8.RuneError && size == 1 {
			return false
		}
	}
	return true
}

// escaped is a text for $'...'.
func escaped(text string) string {
	var s strings.Builder
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == '\'' || r == '\\':
			s.WriteString(`\` + text[:size])
		case printable(text[:size]):
			s.WriteString(text[:size])
		default:
			for _, b := range []byte(text[:size]) {
				fmt.Fprintf(&s, `\%03o`, b)
			}
		}
		text = text[size:]
	}
	return s.String()
}

// inHeader is a name in the header of a difference, quoted as diff(1) does.
func inHeader(name string) string {
	if !printable(name) || strings.ContainsAny(name, `"\`) {
		return strconv.Quote(name)
	}
	return name
}

// visible is text of a file, for a terminal: tabs and line ends stay, and what cannot be
// printed becomes an escape.
func visible(text string) string {
	var s strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if r == '\n' || r == '\t' || strconv.IsPrint(r) && (r != utf8.RuneError || size > 1) {
			s.WriteString(text[:size])
		} else {
			quoted := strconv.Quote(text[:size])
			s.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return s.String()
}

// unequal are the names whose values differ, in order.
func unequal(a, b map[string]string) []string {
	var names []string
	for name, value := range a {
		if other, ok := b[name]; !ok || other != value {
			names = append(names, name)
		}
	}
	for name := range maps.Keys(b) {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
