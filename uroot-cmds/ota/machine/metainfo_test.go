package machine

import (
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/notes"
)

// What a check finds is left for the programs of a desktop.
func TestMetainfo(t *testing.T) {
	w := newWorld(t)
	w.write("etc/os-release", []byte("NAME=x\nPRETTY_NAME='An OS <1>'\n"))
	w.say(func(n *notes.Notes, _ *string) { n.Releases[0].Date = 1_767_225_600 })
	left := func(out *Outcome) string {
		t.Helper()
		must(t, w.m.LeaveMetainfo(out))
		return w.read(metainfoFile)
	}
	has := func(text string, want ...string) {
		t.Helper()
		for _, s := range append(want, "<id>test-os</id>", "<name>An OS &lt;1&gt;</name>", `<bundle type="sysupdate">host</bundle>`) {
			if !strings.Contains(text, s) {
				t.Errorf("%s is missing:\n%s", s, text)
			}
		}
	}
	if text := left(nil); strings.Contains(text, "<release ") {
		t.Errorf("without a check:\n%s", text)
	} else {
		has(text)
	}
	out, err := w.m.Check(t.Context(), Options{})
	must(t, err)
	has(left(out), `<release version="3" urgency="low" timestamp="1767225600">`, fmt.Sprintf("<p>This machine fetches %.1f MB of it.</p>", float64(*out.Fetch)/1e6), "<p>It is faster.</p>")
	said := len(out.Notes[0].Text)
	has(left(out)) // and is what it was
	if len(out.Notes[0].Text) != said {
		t.Errorf("the outcome's notes have become %+v", out.Notes)
	}
	out.Fetch = nil
	has(left(out), "of which this machine fetches what it does not have yet")

	long := *out
	long.Notes = []notes.Release{{Version: 3, Urgency: "critical", Text: make([]notes.Part, 200)}}
	for i := range long.Notes[0].Text {
		long.Notes[0].Text[i].Paragraph = "more"
	}
	if text := left(&long); strings.Contains(text, "more") {
		t.Error("more text than there may be")
	} else {
		has(text, `<release version="3" urgency="`)
	}
	if _, err := w.fetch(); err != nil {
		t.Fatal(err)
	}
	out, err = w.m.Check(t.Context(), Options{})
	must(t, err)
	has(left(out), `<release version="3"`, "It is fetched already: restart to use it.")

	w.write("etc/os-release", []byte("PRETTY_NAME=\"a\x1b[31m\"\n"))
	if text := left(nil); !strings.Contains(text, "<name>test-os</name>") {
		t.Errorf("a name that steers a terminal:\n%s", text)
	}
}
