package changes

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Shown is a name as it may be printed: one with line breaks, control characters, what
// steers a terminal or turns the direction of the text, is quoted with escapes.
func Shown(name string) string {
	for i, r := range name {
		_, size := utf8.DecodeRuneInString(name[i:])
		if !strconv.IsPrint(r) || r == utf8.RuneError && size == 1 {
			return strconv.Quote(name)
		}
	}
	if name == "" || name != strings.TrimSpace(name) || strings.ContainsAny(name, `"\`) {
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
