package notes

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
)

// item and numbered start the items of lists; emphasis is what goes of a text, since only
// the words are kept.
var (
	item     = regexp.MustCompile(`^\s{0,3}[-*+]\s+(.*)$`)
	numbered = regexp.MustCompile(`^\s{0,3}\d{1,4}[.)]\s+(.*)$`)
	emphasis = regexp.MustCompile("\\*\\*|__|`")
	link     = regexp.MustCompile(`\[([^\]]*)\]\(([^)\s]*)\)`)
)

// FromMarkdown makes notes of one release of a text: paragraphs and lists, of which
// emphasis and headings are kept as words. Before the text there may be lines "Urgency:
// high", "Kind: security" or "Kind: feature", "Date: 2026-11-29", "URL: https://..." and
// "CVE: CVE-2026-1234, ...", and an empty line.
func FromMarkdown(text []byte, imageID string, v contract.Version) (*Notes, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	r := Release{Version: v, Urgency: "medium"}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	lines, err := r.readHead(lines)
	if err != nil {
		return nil, err
	}
	var m markdown
	for _, line := range lines {
		m.line(line)
	}
	m.end()
	r.Text = m.parts
	n := &Notes{ImageID: imageID, Releases: []Release{r}}
	return n, n.Validate()
}

// readHead reads the lines before the text, and returns those that follow.
func (r *Release) readHead(lines []string) ([]string, error) {
	head := map[string]string{}
	rest := lines
	for len(rest) > 0 && strings.TrimSpace(rest[0]) != "" {
		key, value, ok := strings.Cut(rest[0], ":")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || !slices.Contains([]string{"urgency", "kind", "date", "url", "cve"}, key) {
			break
		}
		if _, twice := head[key]; twice {
			return nil, fmt.Errorf("%q is said twice", key)
		}
		head[key] = strings.TrimSpace(value)
		rest = rest[1:]
	}
	if len(head) > 0 && len(rest) > 0 && strings.TrimSpace(rest[0]) != "" {
		return nil, fmt.Errorf("%.40q comes where an empty line ends what is said before the text", rest[0])
	}
	if u, ok := head["urgency"]; ok {
		r.Urgency = Urgency(strings.ToLower(u))
	}
	kind, said := head["kind"]
	switch kind = strings.ToLower(kind); {
	case kind == "security":
		r.Security = true
	case said && kind != "feature":
		return nil, fmt.Errorf("kind is %.20q, want security or feature", kind)
	}
	if cves, ok := head["cve"]; ok {
		if kind == "feature" {
			return nil, errors.New("a release with CVE numbers is one of kind security")
		}
		r.Security = true
		r.Issues = strings.FieldsFunc(cves, func(c rune) bool { return c == ',' || c == ' ' })
	}
	r.URL = head["url"]
	var err error
	r.Date, err = date(head["date"], "")
	return rest, err
}

// markdown gathers parts.
type markdown struct {
	parts []Part
	open  *Part // a list
	text  []string
}

func (m *markdown) line(line string) {
	list, ordered := item.FindStringSubmatch(line), numbered.FindStringSubmatch(line)
	switch {
	case strings.TrimSpace(line) == "":
		m.endText()
	case list != nil:
		m.startItem(list[1], false)
	case ordered != nil:
		m.startItem(ordered[1], true)
	default:
		heading := strings.HasPrefix(line, "#")
		if indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"); m.open != nil && len(m.text) == 0 && !indented || heading {
			m.end() // the list is over
		}
		m.text = append(m.text, strings.TrimSpace(strings.TrimLeft(line, "#")))
		if heading {
			m.end()
		}
	}
}

func (m *markdown) startItem(text string, ordered bool) {
	m.endText()
	if m.open != nil && m.open.Numbered != ordered {
		m.end()
	}
	if m.open == nil {
		m.open = &Part{Numbered: ordered}
	}
	m.text = []string{text}
}

// endText ends a paragraph or an item.
func (m *markdown) endText() {
	text := link.ReplaceAllString(strings.Join(m.text, " "), "$1 ($2)")
	text = words(emphasis.ReplaceAllString(text, ""))
	m.text = nil
	switch {
	case text == "":
	case m.open != nil:
		m.open.Items = append(m.open.Items, text)
	default:
		m.parts = append(m.parts, Part{Paragraph: text})
	}
}

// end ends what is open.
func (m *markdown) end() {
	m.endText()
	if m.open != nil && len(m.open.Items) > 0 {
		m.parts = append(m.parts, *m.open)
	}
	m.open = nil
}
