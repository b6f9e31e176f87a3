package notes

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
)

// securityKey names the versions that close holes, in the component's <custom>: AppStream
// has no place for it in a <release> but for CVE numbers.
const securityKey = "HalogenOS::security"

// An element is one of XML, with what is in it. Text is what lies around its elements.
type element struct {
	name  string
	attrs map[string]string
	text  string
	all   []*element
}

// known are the elements, with the attributes that each may have.
var known = map[string][]string{
	"component": {"type"}, "id": nil, "name": nil, "summary": nil, "metadata_license": nil, "custom": nil, "value": {"key"},
	"releases": nil, "release": {"version", "date", "timestamp", "urgency", "type"}, "description": nil, "p": nil, "ul": nil, "ol": nil, "li": nil,
	"em": nil, "code": nil, "url": {"type"}, "issues": nil, "issue": {"type"},
}

const maxDepth = 8

// read reads one element and all that is in it.
func read(text []byte) (*element, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	d := xml.NewDecoder(bytes.NewReader(text))
	d.Entity = map[string]string{} // beside the five of XML there are none
	var open []*element
	var root *element
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && root != nil && len(open) == 0 {
			return root, nil
		}
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			e, err := start(t)
			if err != nil {
				return nil, err
			}
			switch {
			case len(open) == maxDepth:
				return nil, fmt.Errorf("elements are nested deeper than %d", maxDepth)
			case len(open) > 0:
				within := open[len(open)-1]
				within.all = append(within.all, e)
			case root != nil:
				return nil, errors.New("there is more than one element")
			default:
				root = e
			}
			open = append(open, e)
		case xml.EndElement:
			if err := closeElement(open); err != nil {
				return nil, err
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].text += string(t)
			} else if strings.TrimSpace(string(t)) != "" {
				return nil, errors.New("there is text outside of the element")
			}
		case xml.Directive:
			return nil, errors.New("declarations (<!...>) are not taken")
		case xml.ProcInst:
			if t.Target != "xml" || root != nil {
				return nil, fmt.Errorf("<?%s is not taken", t.Target)
			}
		}
	}
}

// closeElement gives the text of <em> and <code> to what they stand in: only it is kept.
func closeElement(open []*element) error {
	e := open[len(open)-1]
	if e.name != "em" && e.name != "code" || len(open) < 2 {
		return nil
	}
	if len(e.all) > 0 {
		return fmt.Errorf("<%s> has <%s> in it, which does not belong there", e.name, e.all[0].name)
	}
	within := open[len(open)-2]
	within.text += e.text
	within.all = within.all[:len(within.all)-1]
	return nil
}

func start(t xml.StartElement) (*element, error) {
	allowed, ok := known[t.Name.Local]
	if !ok || t.Name.Space != "" {
		return nil, fmt.Errorf("element <%.40s> is not known here", t.Name.Local)
	}
	e := &element{name: t.Name.Local, attrs: map[string]string{}}
	for _, a := range t.Attr {
		_, twice := e.attrs[a.Name.Local]
		if a.Name.Space != "" || !slices.Contains(allowed, a.Name.Local) || twice {
			return nil, fmt.Errorf("<%s> has the attribute %.40q, which is not known there, or twice", e.name, a.Name.Local)
		}
		e.attrs[a.Name.Local] = a.Value
	}
	return e, nil
}

// of returns the elements in e, which must be of these names and stand in no text.
func (e *element) of(names ...string) ([]*element, error) {
	if strings.TrimSpace(e.text) != "" {
		return nil, fmt.Errorf("<%s> has text, %.40q, outside of its elements", e.name, strings.TrimSpace(e.text))
	}
	for _, in := range e.all {
		if !slices.Contains(names, in.name) {
			return nil, fmt.Errorf("<%s> has <%s> in it, which does not belong there", e.name, in.name)
		}
	}
	return e.all, nil
}

// plain is the text of an element that has nothing else in it.
func (e *element) plain() (string, error) {
	if len(e.all) > 0 {
		return "", fmt.Errorf("<%s> has <%s> in it, which does not belong there", e.name, e.all[0].name)
	}
	return words(e.text), nil
}

// Parse reads what Encode wrote, and the metainfo file of an operating system that has no
// more in it than this package knows.
func Parse(text []byte) (*Notes, error) {
	root, err := read(text)
	if err == nil && root.name != "component" {
		err = fmt.Errorf("it is <%s>, and not the <component> of an operating system", root.name)
	}
	if err != nil {
		return nil, err
	}
	return component(root)
}

// ParseReleases reads a <releases> element, as AppStream's release metadata files have,
// or a <component>. imageID is whose releases they are.
func ParseReleases(text []byte, imageID string) (*Notes, error) {
	root, err := read(text)
	if err != nil {
		return nil, err
	}
	var n *Notes
	switch root.name {
	case "component":
		n, err = component(root)
	case "releases":
		n = &Notes{ImageID: imageID}
		if n.Releases, err = releases(root); err == nil {
			err = n.Validate()
		}
	default:
		err = fmt.Errorf("it is <%s>, and neither <releases> nor <component>", root.name)
	}
	if err == nil && n.ImageID != imageID {
		err = fmt.Errorf("it is about %s, and not about %s", n.ImageID, imageID)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func component(root *element) (*Notes, error) {
	all, err := root.of("id", "name", "summary", "metadata_license", "custom", "releases")
	if err != nil {
		return nil, err
	}
	n := new(Notes)
	var secure []string
	seen := map[string]bool{}
	for _, e := range all {
		if seen[e.name] {
			return nil, fmt.Errorf("<component> has two of <%s>", e.name)
		}
		seen[e.name] = true
		switch e.name {
		case "id":
			n.ImageID, err = e.plain()
		case "custom":
			secure, err = security(e)
		case "releases":
			n.Releases, err = releases(e)
		default:
			_, err = e.plain()
		}
		if err != nil {
			return nil, err
		}
	}
	for i := range n.Releases {
		r := &n.Releases[i]
		r.Security = r.Security || slices.Contains(secure, r.Version.String())
	}
	return n, n.Validate()
}

// security reads which versions close holes.
func security(custom *element) ([]string, error) {
	values, err := custom.of("value")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range values {
		text, err := v.plain()
		if err != nil {
			return nil, err
		}
		if v.attrs["key"] == securityKey {
			out = append(out, strings.Fields(text)...)
		}
	}
	return out, nil
}

func releases(e *element) ([]Release, error) {
	all, err := e.of("release")
	if err != nil {
		return nil, err
	}
	var out []Release
	for _, e := range all {
		r, err := readRelease(e)
		if err != nil {
			return nil, fmt.Errorf("release %.20q: %w", e.attrs["version"], err)
		}
		out = append(out, r)
	}
	return out, nil
}

func readRelease(e *element) (r Release, err error) {
	if r.Version, err = contract.ParseVersion(e.attrs["version"]); err != nil {
		return r, err
	}
	if r.Date, err = date(e.attrs["date"], e.attrs["timestamp"]); err != nil {
		return r, err
	}
	if r.Urgency = Urgency(e.attrs["urgency"]); r.Urgency == "" {
		r.Urgency = "medium" // as AppStream has it
	}
	all, err := e.of("description", "url", "issues")
	if err != nil {
		return r, err
	}
	for _, e := range all {
		switch e.name {
		case "description":
			var parts []Part
			parts, err = description(e)
			r.Text = append(r.Text, parts...)
		case "url":
			r.URL, err = e.plain()
		case "issues":
			err = r.readIssues(e)
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// date reads a day or a number of seconds since 1970.
func date(day, seconds string) (int64, error) {
	switch {
	case seconds != "":
		n, err := strconv.ParseInt(seconds, 10, 64)
		if err != nil {
			err = fmt.Errorf("timestamp %.20q is not a number", seconds)
		}
		return n, err
	case day != "":
		t, err := time.Parse(time.DateOnly, day)
		if err != nil {
			return 0, fmt.Errorf("date %.20q is not a day like 2026-11-29", day)
		}
		return t.Unix(), nil
	}
	return 0, nil
}

func (r *Release) readIssues(e *element) error {
	all, err := e.of("issue")
	if err != nil {
		return err
	}
	for _, issue := range all {
		text, err := issue.plain()
		if err != nil {
			return err
		}
		if issue.attrs["type"] != "cve" {
			continue
		}
		r.Issues, r.Security = append(r.Issues, text), true
	}
	return nil
}

func description(e *element) ([]Part, error) {
	all, err := e.of("p", "ul", "ol")
	if err != nil {
		return nil, err
	}
	var out []Part
	for _, e := range all {
		p := Part{Numbered: e.name == "ol"}
		if e.name == "p" {
			if p.Paragraph, err = e.plain(); err != nil {
				return nil, err
			}
			out = append(out, p)
			continue
		}
		items, err := e.of("li")
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			text, err := item.plain()
			if err != nil {
				return nil, err
			}
			p.Items = append(p.Items, text)
		}
		out = append(out, p)
	}
	return out, nil
}

// Encode returns the notes as AppStream metadata, always the same for the same notes. It
// has no XML declaration, which is not needed: what starts so is taken for a web page in
// a file's place by those who fetch files.
func (n *Notes) Encode() ([]byte, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	return n.encode("")
}

// Metainfo is Encode for programs that show software: with a name and a line about the system,
// the licence of these data, and that systemd-sysupdate's target of the host is meant
// (AppStream 1.0 section 2.1, https://systemd.io/APPSTREAM_BUNDLE). There may be no release.
func (n *Notes) Metainfo(name, summary string) ([]byte, error) {
	if err := n.Validate(); err != nil && len(n.Releases) > 0 {
		return nil, err
	}
	if !contract.ValidID(n.ImageID) {
		return nil, fmt.Errorf("image ID %.60q is not valid", n.ImageID)
	}
	return n.encode(fmt.Sprintf("  <name>%s</name>\n  <summary>%s</summary>\n  <metadata_license>CC0-1.0</metadata_license>\n  <bundle type=\"sysupdate\">host</bundle>\n", escape(name), escape(summary)))
}

// encode writes it, with more about the component after its ID.
func (n *Notes) encode(more string) ([]byte, error) {
	var b strings.Builder
	b.WriteString(`<component type="operating-system">` + "\n")
	fmt.Fprintf(&b, "  <id>%s</id>\n%s  <releases>\n", escape(n.ImageID), more)
	var secure []string
	for _, r := range n.Releases {
		if r.Security {
			secure = append(secure, r.Version.String())
		}
		r.encode(&b)
	}
	b.WriteString("  </releases>\n")
	if len(secure) > 0 {
		fmt.Fprintf(&b, "  <custom>\n    <value key=%q>%s</value>\n  </custom>\n", securityKey, strings.Join(secure, " "))
	}
	b.WriteString("</component>\n")
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("notes have %d bytes, more than %d", b.Len(), MaxSize)
	}
	return []byte(b.String()), nil
}

func (r *Release) encode(b *strings.Builder) {
	fmt.Fprintf(b, `    <release version="%s" urgency="%s"`, r.Version, r.Urgency)
	if r.Date != 0 {
		fmt.Fprintf(b, ` timestamp="%d"`, r.Date)
	}
	b.WriteString(">\n")
	if len(r.Text) > 0 {
		b.WriteString("      <description>\n")
		for _, p := range r.Text {
			p.encode(b)
		}
		b.WriteString("      </description>\n")
	}
	if r.URL != "" {
		fmt.Fprintf(b, "      <url>%s</url>\n", escape(r.URL))
	}
	if len(r.Issues) > 0 {
		b.WriteString("      <issues>\n")
		for _, issue := range r.Issues {
			fmt.Fprintf(b, "        <issue type=\"cve\">%s</issue>\n", escape(issue))
		}
		b.WriteString("      </issues>\n")
	}
	b.WriteString("    </release>\n")
}

func (p *Part) encode(b *strings.Builder) {
	if p.Paragraph != "" {
		fmt.Fprintf(b, "        <p>%s</p>\n", escape(p.Paragraph))
		return
	}
	list := "ul"
	if p.Numbered {
		list = "ol"
	}
	fmt.Fprintf(b, "        <%s>\n", list)
	for _, item := range p.Items {
		fmt.Fprintf(b, "          <li>%s</li>\n", escape(item))
	}
	fmt.Fprintf(b, "        </%s>\n", list)
}

// escape is text that XML gives back.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes all
	return b.String()
}
