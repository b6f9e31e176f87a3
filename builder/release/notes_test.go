package release

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/notes"
	"halogenos.internal/boot/pgp"
)

// What a release brings lies beside it, signed, and can be corrected.
func TestNotes(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o := w.options(w.build(3, "release", fpr), "release")
	for name, c := range map[string]struct{ file, text, why string }{
		"another release": {"a.xml", `<releases><release version="4"/><release version="3"/></releases>`, "the newest release there is 4"},
		"another image":   {"b.xml", `<component><id>server</id><releases><release version="3"/></releases></component>`, "about server, and not about test-os"},
		"no ending":       {"notes", "Hello.", "want .xml for AppStream metadata or .md for Markdown"},
		"nothing":         {"c.md", "", "a part of the text"},
	} {
		o.Notes = w.write(c.file, c.text)
		if name == "nothing" {
			if err := os.Remove(o.Notes); err != nil {
				t.Fatal(err)
			}
			c.why = "no such file"
		}
		if _, err := Publish(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
		if _, err := os.Stat(o.Server); err == nil {
			t.Fatalf("%s: something was written", name)
		}
	}
	o.Notes = w.write("notes.md", "Kind: security\nUrgency: high\n\nIt closes a hole.\n")
	w.publish(o)
	key, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	said := func() *notes.Notes {
		t.Helper()
		directory := filepath.Join(o.Server, "x86_64/test-os")
		text := mustRead(t, filepath.Join(directory, notes.FileName(3)))
		if err := key.Verify(bytes.NewReader(text), mustRead(t, filepath.Join(directory, notes.SignatureName(3))), now); err != nil {
			t.Error(err)
		}
		n, err := notes.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := said(); n.ImageID != "test-os" || !n.Releases[0].Security || n.Releases[0].Urgency != "high" || n.Releases[0].Text[0].Paragraph != "It closes a hole." {
		t.Errorf("%+v", n)
	}
	o.Notes = w.write("notes.xml", `<releases><release version="3" urgency="low"><description><p>It closes no hole.</p></description></release><release version="2"/></releases>`)
	w.publish(o)
	if n := said(); n.Releases[0].Security || len(n.Releases) != 2 {
		t.Errorf("corrected: %+v", n)
	}
}
