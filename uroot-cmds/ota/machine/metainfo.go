package machine

import (
	"cmp"
	"fmt"
	"strings"
	"unicode"

	"halogenos.internal/boot/notes"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/offer"
)

// metainfoFile is in memory, and has what programs that show software show of this system and
// of an update.
const metainfoFile = "run/halogen/update.metainfo.xml"

// MetainfoFile is where it is.
func (m *Machine) MetainfoFile() string { return m.path(metainfoFile) }

// LeaveMetainfo writes it. out is what a check has found; nil is that there was none.
func (m *Machine) LeaveMetainfo(out *Outcome) error {
	r, err := m.Running()
	if err != nil {
		return err
	}
	text, err := metainfo(r.Contract.ImageID, m.prettyName(), out)
	if err != nil {
		return err
	}
	return hw.KeepFile(m.MetainfoFile(), text, 0o644)
}

// metainfo is what there is to say of an offer. AppStream has no place for what one machine
// would fetch: the release's text begins with it.
func metainfo(id, name string, out *Outcome) ([]byte, error) {
	n := &notes.Notes{ImageID: id}
	if out != nil && (out.Verdict == offer.Take || out.Staged) {
		n.Releases = append(n.Releases, out.Notes...)
		if len(n.Releases) == 0 || n.Releases[0].Version != out.Version {
			n.Releases = append([]notes.Release{{Version: out.Version, Urgency: "medium"}}, n.Releases...)
		}
		first := &n.Releases[0]
		first.Text = append([]notes.Part{{Paragraph: fetches(out)}}, first.Text...)
	}
	const summary = "Operating system"
	text, err := n.Metainfo(cmp.Or(name, id), summary)
	if err != nil && len(n.Releases) > 0 { // more text than there may be
		n.Releases = []notes.Release{{Version: out.Version, Urgency: cmp.Or(out.Urgency, "medium"), Text: []notes.Part{{Paragraph: fetches(out)}}}}
		return n.Metainfo(cmp.Or(name, id), summary)
	}
	return text, err
}

// fetches says how much would be fetched.
func fetches(out *Outcome) string {
	switch {
	case out.Staged:
		return "It is fetched already: restart to use it."
	case out.Fetch != nil:
		return fmt.Sprintf("This machine fetches %.1f MB of it.", float64(*out.Fetch)/1e6)
	}
	return fmt.Sprintf("It has %.1f MB, of which this machine fetches what it does not have yet.", float64(out.Size)/1e6)
}

// prettyName is the system's name for people (os-release(5)); "" is not known.
func (m *Machine) prettyName() string {
	for _, file := range []string{"etc/os-release", "usr/lib/os-release"} {
		text, err := m.read(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			name, is := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
			name = strings.Trim(name, `"'`)
			if is && len(name) <= 100 && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
				return name
			}
		}
	}
	return ""
}
