package health

import (
	"fmt"
	"regexp"
	"strings"
)

// Files that name services which may fail, from the root directory on: the image's
// and the owner's. Both count.
const (
	ImageFile = "usr/lib/halogen/health-ignore"
	OwnerFile = "etc/halogen/health-ignore"
)

// MaxIgnore bounds such a file in bytes.
const MaxIgnore = 64 << 10

// An Ignore names services whose failure does not count.
type Ignore []*regexp.Regexp

// own are HalogenOS's units that are no part of the system's health: a server that is
// away is no fault of the system, and the others are what judges it.
var own = []string{"ota-fetch.service", "ota-health.service", "ota-bless.service", "ota-unhealthy.service", "ota-failures.service"}

// ParseIgnore reads a file: a pattern a line, in which "*" stands for any characters
// and "?" for one. "#" at the start of a line or after a space begins a comment. A line
// that is malformed excuses nothing; the error names it.
func ParseIgnore(name string, text []byte) (Ignore, error) {
	if len(text) > MaxIgnore {
		return nil, fmt.Errorf("/%s has %d bytes, at most %d are read", name, len(text), MaxIgnore)
	}
	var out Ignore
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
func (i Ignore) Has(name string) bool {
	for _, pattern := range i {
		if pattern.MatchString(name) {
			return true
		}
	}
	return false
}

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
