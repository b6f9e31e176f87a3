// Package healthignore reads the lists of services whose failure does not count against
// a trial: HalogenOS's own, the distributor's, which the builder checks, and the owner's.
//
// It refuses a line that is not one name: such a line excuses nothing.
package healthignore

import (
	"fmt"
	"regexp"
	"strings"
)

// Files that name services which may fail, from the root directory on: HalogenOS's
// own, the distributor's and the owner's. All count.
const (
	DefaultFile = "usr/lib/halogen/health-ignore.default"
	ImageFile   = "usr/lib/halogen/health-ignore"
	OwnerFile   = "etc/halogen/health-ignore"
)

const (
	// MaxSize bounds such a file in bytes.
	MaxSize = 64 << 10
	// maxName bounds the name of a service in bytes (systemd.unit(5)).
	maxName = 255
)

// A List names services whose failure does not count.
type List []*regexp.Regexp

// Parse reads a file: a pattern a line, in which "*" stands for any characters
// and "?" for one. "#" at the start of a line or after a space begins a comment. A line
// that is malformed excuses nothing; the error names it.
func Parse(name string, text []byte) (List, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("/%s has %d bytes, at most %d are read", name, len(text), MaxSize)
	}
	var out List
	var bad error
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		words := strings.Fields(line)
		for i, w := range words {
			if strings.HasPrefix(w, "#") {
				words = words[:i]
				break
			}
		}
		switch {
		case len(words) == 0:
		case len(words) > 1 || !validName(words[0], "*?"):
			if bad == nil {
				bad = fmt.Errorf("/%s, line %d: %.80q is not one name of a service (%q and %q stand for other characters): write one a line", name, number, strings.TrimSpace(line), "*", "?")
			}
		default:
			quoted := regexp.QuoteMeta(words[0])
			quoted = strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(quoted)
			out = append(out, regexp.MustCompile("^"+quoted+"$"))
		}
	}
	return out, bad
}

// Has reports whether a service's failure does not count.
func (l List) Has(name string) bool {
	for _, pattern := range l {
		if pattern.MatchString(name) {
			return true
		}
	}
	return false
}

// ValidName reports whether a service may have this name.
func ValidName(name string) bool { return validName(name, "") }

// validName reports whether a service may have this name, with other characters
// allowed besides (systemd.unit(5); OpenRC's are file names).
func validName(name, besides string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune(`:-_.\@+`+besides, rune(c)) {
			return false
		}
	}
	return true
}
