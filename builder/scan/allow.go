package scan

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// An Allow is a finding that the distributor has looked at and wants.
type Allow struct {
	Rule    string // name of the rule
	Pattern string // of the file's name: '*' stands for anything but '/', '**' for anything
	Reason  string
	// Optional is an entry that need not match: it is for something that not
	// every image has.
	Optional bool

	name *regexp.Regexp
}

// ParseAllow reads the entries of a rule: a pattern and its reason a line.
func ParseAllow(rule, value string) ([]Allow, error) {
	if !slices.ContainsFunc(Rules(), func(r Rule) bool { return r.Name == rule }) {
		return nil, fmt.Errorf("there is no rule %q", rule)
	}
	var all []Allow
	for line := range strings.Lines(value) {
		name, reason, _ := strings.Cut(strings.TrimSpace(line), " ")
		a := Allow{Rule: rule, Pattern: strings.TrimPrefix(name, "?"), Reason: strings.TrimSpace(reason), Optional: strings.HasPrefix(name, "?")}
		if a.Reason == "" {
			return nil, fmt.Errorf("%q has no reason: want the file's name and then why it may be in the image", a.Pattern)
		}
		var err error
		if a.name, err = nameExpression(a.Pattern); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, errors.New("names no file")
	}
	return all, nil
}

// nameExpression returns what a pattern matches. One that matches every file
// of the image allows a rule away.
func nameExpression(pattern string) (*regexp.Regexp, error) {
	if !strings.HasPrefix(pattern, "/") && !strings.HasPrefix(pattern, Initramfs+"!/") {
		return nil, fmt.Errorf("%q is not the name of a file: want it from the top of the image, or after %q", pattern, Initramfs+"!")
	}
	if strings.Trim(strings.TrimPrefix(pattern, Initramfs+"!"), "/*") == "" {
		return nil, fmt.Errorf("%q allows every file", pattern)
	}
	var e strings.Builder
	for rest := pattern; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			e.WriteString(".*")
			rest = rest[2:]
		case rest[0] == '*':
			e.WriteString("[^/]*")
			rest = rest[1:]
		default:
			n := strings.IndexByte(rest, '*')
			if n < 0 {
				n = len(rest)
			}
			e.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	return regexp.Compile(`\A(?s:` + e.String() + `)\z`)
}

// Matches reports whether the entry is for a finding.
func (a *Allow) Matches(f Finding) bool {
	return a.Rule == f.Rule && a.name != nil && a.name.MatchString(f.File)
}
