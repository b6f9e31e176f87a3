// Package notes reads and writes what a distributor says of a release: AppStream
// metadata of an operating system (AppStream 1.0, "Operating System" components and
// their <releases>), in a form that is bounded and means one thing.
//
// It refuses elements and attributes that it does not know, declarations and entities of
// its own, text that could steer a terminal, and a release without a version. It does not
// say that notes are genuine: they are signed.
package notes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"halogenos.internal/boot/contract"
)

// Bounds.
const (
	MaxSize     = 64 << 10 // bytes of the file
	maxReleases = 64
	maxParts    = 200 // paragraphs and items of all releases
	maxText     = 4 << 10
)

// FileName is the notes' name beside a release's archive, relative to the image's
// directory.
func FileName(v contract.Version) string { return v.String() + "/" + v.String() + ".metainfo.xml" }

// SignatureName is the name of the notes' detached signature.
func SignatureName(v contract.Version) string { return FileName(v) + ".pgp" }

// An Urgency says how soon a release should be installed.
type Urgency string

// Urgencies returns all of them, the least first.
func Urgencies() []Urgency { return []Urgency{"low", "medium", "high", "critical"} }

// Notes are what there is to say about releases of one image, newest first.
type Notes struct {
	ImageID  string    `json:"image_id"`
	Releases []Release `json:"releases"`
}

// A Release is what there is to say about one.
type Release struct {
	Version  contract.Version `json:"version"`
	Date     int64            `json:"date,omitempty"` // seconds since 1970; 0 is not said
	Urgency  Urgency          `json:"urgency"`
	Security bool             `json:"security"`         // it closes holes
	URL      string           `json:"url,omitempty"`    // where more is said
	Issues   []string         `json:"issues,omitempty"` // CVE numbers, which make it one of security
	Text     []Part           `json:"text"`
}

// A Part is a paragraph, or a list of items.
type Part struct {
	Paragraph string   `json:"paragraph,omitempty"`
	Items     []string `json:"items,omitempty"`
	Numbered  bool     `json:"numbered,omitempty"`
}

// Since returns what is said of the releases after one, up to another: what a machine
// gets that goes from the one to the other.
func (n *Notes) Since(running, offered contract.Version) []Release {
	var out []Release
	for _, r := range n.Releases {
		if r.Version > running && r.Version <= offered {
			out = append(out, r)
		}
	}
	return out
}

// Summary is the greatest urgency of some releases, and whether one closes holes.
func Summary(all []Release) (u Urgency, security bool) {
	rank := func(u Urgency) int { return slices.Index(Urgencies(), u) }
	for _, r := range all {
		security = security || r.Security
		if u == "" || rank(r.Urgency) > rank(u) {
			u = r.Urgency
		}
	}
	return u, security
}

// Validate reports the first thing that is wrong.
func (n *Notes) Validate() error {
	if !contract.ValidID(n.ImageID) {
		return fmt.Errorf("image ID %.60q is not valid", n.ImageID)
	}
	if len(n.Releases) == 0 || len(n.Releases) > maxReleases {
		return fmt.Errorf("notes of %d releases, want 1 to %d", len(n.Releases), maxReleases)
	}
	parts := 0
	for i, r := range n.Releases {
		if err := r.validate(); err != nil {
			return fmt.Errorf("notes of release %s: %w", r.Version, err)
		}
		if i > 0 && cmp.Compare(r.Version, n.Releases[i-1].Version) >= 0 {
			return fmt.Errorf("release %s comes after %s: the newest must come first, each once", r.Version, n.Releases[i-1].Version)
		}
		for _, p := range r.Text {
			parts += 1 + len(p.Items)
		}
	}
	if parts > maxParts {
		return fmt.Errorf("notes have %d paragraphs and items, more than %d", parts, maxParts)
	}
	return nil
}

func (r *Release) validate() error {
	switch {
	case r.Version == 0:
		return errors.New("it has no version")
	case !slices.Contains(Urgencies(), r.Urgency):
		return fmt.Errorf("urgency is %.20q, want low, medium, high or critical", r.Urgency)
	case r.Date < 0 || r.Date > time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).Unix():
		return fmt.Errorf("date %d lies before 1970 or after 9999", r.Date)
	case r.URL != "" && !strings.HasPrefix(r.URL, "https://") && !strings.HasPrefix(r.URL, "http://"):
		return fmt.Errorf("%.100q is not an http or https URL", r.URL)
	case len(r.Issues) > 0 && !r.Security:
		return errors.New("it has CVE numbers, and is not said to close holes")
	}
	texts := append([]string{r.URL}, r.Issues...)
	for _, p := range r.Text {
		if (p.Paragraph == "") == (len(p.Items) == 0) || p.Numbered && len(p.Items) == 0 {
			return errors.New("a part of the text is neither a paragraph nor a list")
		}
		texts = append(append(texts, p.Paragraph), p.Items...)
		if slices.Contains(p.Items, "") {
			return errors.New("an item is empty")
		}
	}
	for _, issue := range r.Issues {
		if !strings.HasPrefix(issue, "CVE-") {
			return fmt.Errorf("%.40q is not a CVE number", issue)
		}
	}
	for _, text := range texts {
		if err := checkText(text); err != nil {
			return err
		}
	}
	return nil
}

// The scripts of Persian and of India are written with these, and what is drawn as one emoji
// is several that they join. They have no width and steer nothing.
const nonJoiner, joiner = '\u200c', '\u200d'

// checkText refuses what is not text for people, and spaces that mean nothing: a text has
// one form.
func checkText(s string) error {
	if len(s) > maxText {
		return fmt.Errorf("a text has %d bytes, more than %d", len(s), maxText)
	}
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) && r != nonJoiner && r != joiner {
			return fmt.Errorf("text %.60q holds the character %U, which is not printed", s, r)
		}
	}
	if s != words(s) {
		return fmt.Errorf("text %.60q has spaces where they mean nothing", s)
	}
	return nil
}

// words is text with single spaces.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }
