package machine

import (
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/notes"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// say publishes notes of version 3 and of some before.
func (w *world) say(change func(n *notes.Notes, text *string)) {
	w.t.Helper()
	n := &notes.Notes{ImageID: "test-os", Releases: []notes.Release{
		{Version: 3, Urgency: "low", Text: []notes.Part{{Paragraph: "It is faster."}}},
		{Version: 2, Urgency: "critical", Security: true}, // runs already
	}}
	text := ""
	if change != nil {
		change(n, &text)
	}
	if text == "" {
		encoded, err := n.Encode()
		must(w.t, err)
		text = string(encoded)
	}
	w.site.Put(otatest.Directory+notes.FileName(3), []byte(text))
	w.site.Put(otatest.Directory+notes.SignatureName(3), w.key.Sign([]byte(text)))
}

func TestNotes(t *testing.T) {
	w := newWorld(t)
	w.say(nil)
	out, err := w.m.Check(t.Context(), Options{})
	if err != nil || len(out.Notes) != 1 || out.Notes[0].Text[0].Paragraph != "It is faster." || out.Urgency != "low" || out.Security {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := w.fetch(); err != nil {
		t.Fatal(err)
	}
	if n, err := w.m.News(); n != nil || err != nil {
		t.Errorf("before it runs: %+v, %v", n, err)
	}
	w.boot(layout.SlotB, w.three)
	n, err := w.m.News()
	if err != nil || n == nil || n.Version != 3 || n.From != 2 || n.Read || len(n.Notes) != 1 {
		t.Fatalf("when it runs: %+v, %v", n, err)
	}
	must(t, w.m.NewsRead())
	if n, err = w.m.News(); err != nil || !n.Read {
		t.Errorf("once read: %+v, %v", n, err)
	}
	must(t, w.m.LeaveNews("there is news"))
	if w.read(newsFile) != "there is news\n" {
		t.Errorf("for a login: %s", w.read(newsFile))
	}
	must(t, w.m.LeaveNews(""))
	w.write(stateDirectory+"/"+notesFile, []byte(`{"format":1,"version":"3","notes":[{"version":"3","urgency":"low","text":[{"paragraph":"\u001b[31m"}]}]}`))
	if n, err := w.m.News(); n != nil || err != nil {
		t.Errorf("damaged: %+v, %v", n, err)
	}
}

// What is not signed for this release of this image is not shown, and keeps nobody from
// the update. FAULTS 113
func TestNotesRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		why    string
	}{
		"of another image":   {func(w *world) { w.say(func(n *notes.Notes, _ *string) { n.ImageID = "server" }) }, "of release 3 of server"},
		"of another release": {func(w *world) { w.say(func(n *notes.Notes, _ *string) { n.Releases = n.Releases[1:] }) }, "of release 2 of test-os"},
		"no notes":           {func(w *world) { w.say(func(_ *notes.Notes, text *string) { *text = "<releases/>" }) }, "not the <component>"},
		"not signed":         {func(w *world) { w.say(nil); delete(w.site.Files, otatest.Directory+notes.SignatureName(3)) }, "sign"},
		"another's signature": {func(w *world) {
			w.say(nil)
			w.site.Put(otatest.Directory+notes.SignatureName(3), w.key.Sign([]byte("other")))
		}, "sign"},
	} {
		w := newWorld(t)
		c.change(w)
		said := ""
		out, err := w.m.Check(t.Context(), Options{Tell: func(e worker.Event) { said += e.Note }})
		if err != nil || out.Verdict != offer.Take || out.Notes != nil || !strings.Contains(said, "the notes of version 3 are not shown: ") || !strings.Contains(said, c.why) {
			t.Errorf("%s: %+v, %v, %q", name, out, err, said)
		}
	}
}
