package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/contract"
)

// Parse reads manifest.env. Lines are empty, comments from '#' on, or
// KEY=VALUE, with the value bare or in single or double quotes. A variable
// without a value counts as absent. What a shell would expand, join or split
// is refused.
func Parse(text []byte) (*Manifest, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", FileName, len(text), MaxSize)
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%s is not UTF-8: it is damaged, compressed, or saved in another encoding: put it on the server again", FileName)
	}
	if bytes.HasPrefix(text, []byte("\ufeff")) {
		return nil, fmt.Errorf("%s starts with a byte order mark: save it as UTF-8 without one", FileName)
	}
	if IsPage(text) {
		return nil, fmt.Errorf("%s is a web page: %w", FileName, ErrPage)
	}
	m := new(Manifest)
	seen := map[string]bool{}
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		if err := m.line(line, seen); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", FileName, number, err)
		}
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) line(line string, seen map[string]bool) error {
	if strings.HasSuffix(line, "\r") {
		return errors.New("ends as lines of Windows do (CR LF): save the file with Unix line ends")
	}
	for _, r := range line {
		if r < ' ' && r != '\t' || r == 0x7f {
			return fmt.Errorf("holds the control character %#02x", r)
		}
	}
	line = strings.Trim(line, " \t")
	if line == "" || line[0] == '#' {
		return nil
	}
	name, value, ok := strings.Cut(line, "=")
	if !ok || !validName(name) {
		return notAssignment(line)
	}
	value, err := unquote(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if seen[name] {
		return fmt.Errorf("%s is set twice", name)
	}
	seen[name] = true
	if !isKnown(name) {
		if len(m.Unknown) == maxUnknown {
			return fmt.Errorf("more than %d variables that are not known", maxUnknown)
		}
		m.Unknown = append(m.Unknown, Variable{name, value})
		return nil
	}
	if value == "" {
		return nil
	}
	if err := m.set(name, value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// notAssignment says why a line is not KEY=VALUE, and how it should read where that
// can be told.
func notAssignment(line string) error {
	name, value, ok := strings.Cut(line, "=")
	name, value = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), "export ")), strings.TrimSpace(value)
	if upper := strings.ToUpper(name); ok && validName(upper) {
		return fmt.Errorf("%.60q: variables are in upper case, without \"export\" and without spaces around the '=': write %.60s=%.60s", line, upper, value)
	}
	return fmt.Errorf("%.60q is not an assignment like STABLE=2026010101; comments start with '#'", line)
}

// ErrPage says that a server answered with a web page where a file should be.
var ErrPage = errors.New("a network that wants a login first answers so (open a browser), and a server that has a page for what is missing")

// IsPage reports whether what a server sent is a web page.
func IsPage(b []byte) bool {
	b = bytes.ToLower(bytes.TrimLeft(b[:min(len(b), 512)], " \t\r\n"))
	for _, start := range []string{"<!doctype html", "<html", "<head", "<?xml", "<script", "<!--"} {
		if bytes.HasPrefix(b, []byte(start)) {
			return true
		}
	}
	return false
}

// set gives a known variable its value.
func (m *Manifest) set(name, value string) error {
	switch name {
	case "PUBKEY":
		m.PubKey = value
		return nil
	case "IMAGE":
		m.Image = value
		return nil
	case "EXPIRES":
		t, err := time.Parse("2006-01-02T15:04:05Z", value)
		if err != nil || t.Format(time.RFC3339) != value {
			return fmt.Errorf("%.60q is not a date like 2031-12-31T23:59:59Z", value)
		}
		m.Expires = t.UTC()
		return nil
	case "STEPS":
		for text := range strings.SplitSeq(value, ",") {
			v, err := contract.ParseVersion(text)
			if err != nil {
				return fmt.Errorf("%.60q is not a row of versions like 3,17", value)
			}
			m.Steps = append(m.Steps, v)
		}
		return nil
	case "SEQUENCE":
		n, err := contract.ParseVersion(value)
		if err != nil {
			return fmt.Errorf("%.60q is not a decimal number from 1 on without leading zeros", value)
		}
		m.Sequence = uint64(n)
		return nil
	}
	if channel, ok := strings.CutPrefix(name, "ROLLOUT_"); ok {
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil || n > 100 || strconv.FormatUint(n, 10) != value {
			return fmt.Errorf("%.60q is not a percentage from 0 to 100", value)
		}
		e := m.entry(Channel(strings.ToLower(channel)))
		e.Limited, e.Percent = true, int(n)
		return nil
	}
	if channel, ok := strings.CutPrefix(name, withdrawnPrefix); ok {
		for one := range strings.SplitSeq(value, ",") {
			v, err := contract.ParseVersion(one)
			if err != nil {
				return fmt.Errorf("%.60q is not a list of versions, with commas between them", value)
			}
			m.Withdrawn = append(m.Withdrawn, Withdrawal{Channel(strings.ToLower(channel)), v})
		}
		m.SetWithdrawn(m.Withdrawn)
		return nil
	}
	v, err := contract.ParseVersion(value)
	if err != nil {
		return fmt.Errorf("%.60q is not a version: want a decimal number from 1 on, without leading zeros", value)
	}
	m.entry(Channel(strings.ToLower(name))).Version = v
	return nil
}

// validName reports whether s can be a variable here: upper case, as all are.
func validName(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && (s[0] < '0' || s[0] > '9') && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// isKnown reports whether this package knows what the variable means.
func isKnown(name string) bool {
	if slices.Contains([]string{"PUBKEY", "IMAGE", "EXPIRES", "SEQUENCE", "STEPS"}, name) {
		return true
	}
	return slices.ContainsFunc(Channels(), func(c Channel) bool {
		return name == c.variable() || name == "ROLLOUT_"+c.variable() || name == withdrawnPrefix+c.variable()
	})
}

// isBare reports whether no shell sees anything but itself in the byte.
func isBare(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._:,/@%+-", c) >= 0
}

// plain reports whether a value can be written between quotes of either kind
// and means itself.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == 0x7f || strings.ContainsRune("\"'$`\\", r)
	})
}

// unquote returns the value that a shell would assign, where all shells agree
// and nothing is expanded.
func unquote(s string) (string, error) {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		if inner := s[1 : len(s)-1]; plain(inner) {
			return inner, nil
		}
		return "", fmt.Errorf("value %.60q holds what a shell might expand", s)
	}
	if bare, note, ok := strings.Cut(s, " #"); ok {
		return "", fmt.Errorf("has the note %.60q after it: write that in a line of its own, which starts with '#', and leave %.60q here", strings.TrimSpace(note), strings.TrimSpace(bare))
	}
	for i := range len(s) {
		if !isBare(s[i]) {
			return "", fmt.Errorf("value %.60q needs quotes for %q", s, s[i])
		}
	}
	return s, nil
}

// quote is the reverse of unquote for a plain value.
func quote(s string) string {
	for i := range len(s) {
		if !isBare(s[i]) {
			return `"` + s + `"`
		}
	}
	return s
}
