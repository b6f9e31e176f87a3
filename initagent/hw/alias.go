package hw

import (
	"cmp"
	"slices"
	"strings"
)

// An alias is a line of depmod's modules.alias (modules.alias(5)): devices whose
// names match the pattern are driven by the module.
type alias struct {
	pattern, module string
	order           int // in depmod's file: that of modules.order
}

// aliasIndex is what a device's name is looked up in: aliases by the text before
// the first wildcard of their patterns. Most patterns of the large buses name a
// vendor and a device there, so few are left to compare.
type aliasIndex map[string][]alias

// wildcards are the characters that start something other than themselves.
const wildcards = "*?["

// add adds an alias; one that depmod would not index either is left out.
func (x aliasIndex) add(pattern, module string, order int) {
	pattern, ok := normal(pattern)
	if !ok {
		return
	}
	start := pattern
	if i := strings.IndexAny(pattern, wildcards); i >= 0 {
		start = pattern[:i]
	}
	x[start] = append(x[start], alias{pattern, module, order})
}

// modules returns the modules for a device's name, in the order of the file.
func (x aliasIndex) modules(name string) []string {
	name, ok := normal(name)
	if !ok {
		return nil
	}
	var found []alias
	for n := 0; n <= len(name); n++ {
		for _, a := range x[name[:n]] {
			if match(a.pattern[n:], name[n:]) {
				found = append(found, a)
			}
		}
	}
	slices.SortFunc(found, func(a, b alias) int { return cmp.Compare(a.order, b.order) })
	var names []string
	for _, a := range found {
		if !slices.Contains(names, a.module) {
			names = append(names, a.module)
		}
	}
	return names
}

// normal is the spelling by which depmod and modprobe compare: '-' is '_', but for
// ranges in brackets. Without it are texts whose brackets are not closed; those
// they do not look up (kmod, alias_normalize).
func normal(text string) (string, bool) {
	if !strings.ContainsAny(text, "-[]") {
		return text, true
	}
	out := []byte(text)
	for i := 0; i < len(out); i++ {
		switch out[i] {
		case '-':
			out[i] = '_'
		case ']':
			return "", false
		case '[':
			end := strings.IndexByte(text[i:], ']')
			if end < 0 {
				return "", false
			}
			i += end
		}
	}
	return string(out), true
}

// match is fnmatch(3) without flags and with bytes for characters: '*' and '?'
// stand for '/' as well, and a leading '.' is nothing special. Time is bounded by
// the product of the lengths.
func match(pattern, text string) bool {
	again, from := -1, 0 // the pattern after the last '*', and where its text starts
	p, t := 0, 0
	for t < len(text) || p < len(pattern) {
		if p < len(pattern) && pattern[p] == '*' {
			p++
			again, from = p, t
			continue
		}
		if t < len(text) {
			if width := matchOne(pattern[p:], text[t]); width > 0 {
				p, t = p+width, t+1
				continue
			}
		}
		if again < 0 || from >= len(text) {
			return false
		}
		from++
		p, t = again, from // the '*' takes one character more
	}
	return true
}

// matchOne compares one character with the start of a pattern that is not '*', and
// returns how long that start is; 0 where it is another character.
func matchOne(pattern string, c byte) int {
	switch {
	case pattern == "":
		return 0
	case pattern[0] == '?':
		return 1
	case pattern[0] == '[':
		if width, in := matchSet(pattern, c); width > 0 {
			if in {
				return width
			}
			return 0
		}
	case pattern[0] == '\\' && len(pattern) > 1:
		if pattern[1] == c {
			return 2
		}
		return 0
	}
	if pattern[0] == c {
		return 1
	}
	return 0
}

// matchSet compares a character with a set in brackets at the start of a pattern.
// The width is 0 where the bracket is not closed, which makes it a character.
func matchSet(pattern string, c byte) (width int, in bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	for first := i; i < len(pattern); i++ {
		if pattern[i] == ']' && i > first {
			return i + 1, in != negated
		}
		if pattern[i] == '\\' && i+1 < len(pattern) {
			i++
		}
		low := pattern[i]
		high := low
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			high = pattern[i+2]
			i += 2
		}
		in = in || low <= c && c <= high
	}
	return 0, false
}
