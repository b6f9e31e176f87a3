package keephome

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/rootpart"
)

func TestNote(t *testing.T) {
	people := etcmerge.People{"passwd": []byte("anna:x:1000:1000:\xc4:/home/anna:/bin/sh\n"), "shadow": []byte("anna:$6$x:1::::::\n")}
	for _, want := range []Note{{Stage: Confirmed, After: "id 2026-01-02T03:04:05Z"}, {Stage: Deleting, People: people}, {Stage: Deleted, People: people}} {
		text, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(text)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%+v becomes %+v, %v", want, got, err)
		}
	}
	if text, err := (Note{Stage: Deleting, People: etcmerge.People{"passwd": bytes.Repeat([]byte("x"), MaxSize)}}).Encode(); err == nil {
		t.Errorf("%d bytes are written", len(text))
	}
	for _, text := range []string{
		"", "{}", "null", `{"format":2,"stage":"deleting"}`, `{"format":1}`, `{"format":1,"stage":"later"}`, `{"format":1,"stage":"deleting","all":true}`,
		`{"format":1,"stage":"deleting","people":{"sudoers":"eA=="}}`, `{"format":1,"stage":"deleting","people":{"passwd":"?"}}`, `{"format":1,"stage":"deleting"}x`,
	} {
		if n, err := Parse([]byte(text)); err == nil {
			t.Errorf("%q is taken: %+v", text, n)
		}
	}
}

func TestStays(t *testing.T) {
	for name, want := range map[string]bool{
		"halogen": true, rootpart.Shared + "/" + journal.Name: true, rootpart.Shared + "/" + keynote.Name: true, rootpart.Shared + "/setup.json": false, rootpart.Shared + "/fetch": false, "lost+found": false, "bind/home": true, "bind/home-anna": true,
		"bind": false, "bind/var": false, "bind/homes": false, "home": false, "systems": false, "overlay": false, "snapshots": false, "bind/halogen": false, "halogenx": false,
	} {
		if Stays(name) != want {
			t.Errorf("%s stays: %v", name, !want)
		}
	}
}

func TestLastStart(t *testing.T) {
	if s := LastStart(nil); s != "" {
		t.Errorf("%q", s)
	}
	var text []byte
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, kind := range []journal.Kind{journal.Boot, journal.Boot, journal.Recovery} {
		var err error
		if text, err = journal.Append(text, journal.Entry{Kind: kind, Boot: strings.Repeat("ab"[i%2:i%2+1], 4), Time: at.Add(time.Duration(i) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	if s := LastStart(journal.Parse(text)); s != "bbbb 2026-01-02T04:04:05Z" {
		t.Errorf("%q", s)
	}
}

// What is read can be written again, and says the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"stage":"deleting","after":"x","people":{"passwd":"eA=="}}`))
	f.Add([]byte(`{"format":1,"stage":"confirmed","Stage":"deleted"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		again, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Parse(again); err != nil || got.Stage != n.Stage || got.After != n.After || len(got.People) != len(n.People) {
			t.Errorf("%+v becomes %+v, %v", n, got, err)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"format":1,"after":"x 2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"format":1,"after":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := ParseRequest(text); err == nil && len(r.After) > 2*len(text) {
			t.Errorf("%q gives %q", text, r.After)
		}
	})
}

// A note that somebody has made brings no account that nobody is shown.
func TestNoteOfAStranger(t *testing.T) {
	note, err := Parse([]byte(`{"format":1,"stage":"deleting","people":{"passwd":"` + base64.StdEncoding.EncodeToString([]byte("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/home/toor:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n")) + `"}}`))
	if err != nil || string(note.People["passwd"]) != "anna:x:1000:1000::/home/anna:/bin/sh\n" {
		t.Errorf("%s, %v", note.People["passwd"], err)
	}
}

// However many accounts and groups somebody has made, all are shown, on pages that a screen
// has room for, and are in the journal.
func TestWhoStays(t *testing.T) {
	var people []etcmerge.Person
	want := "These accounts are kept:"
	for i := range uint32(30) {
		p := etcmerge.Person{Name: etcmerge.Name(fmt.Sprintf("person%d", i)), Number: 1000 + i}
		want += fmt.Sprintf(" %s, number %d", p.Name, p.Number)
		for j := range int(i) {
			group := fmt.Sprintf("group%d", j)
			if i == 20 && j == 10 {
				group = strings.Repeat("x", 64)
			}
			want += map[bool]string{true: ", in ", false: " "}[j == 0] + group
			p.Groups = append(p.Groups, etcmerge.Name(group))
		}
		people = append(people, p)
	}
	pages := Pages(WhoStays(words.English, people))
	if got := strings.Join(strings.Fields(strings.Join(pages, "")), " "); got != want {
		t.Errorf("shown is %q, want %q", got, want)
	}
	for _, page := range pages {
		if strings.Count(page, "\n") > pageLines || slices.ContainsFunc(slices.Collect(strings.Lines(page)), func(line string) bool { return len(line) > pageWidth+1 }) {
			t.Errorf("a page is\n%s", page)
		}
	}
	entries := Entries(people)
	noted := strings.ReplaceAll(strings.TrimPrefix(strings.Join(entries, " "), "a reset that keeps /home was confirmed. "), "it keeps, too: ", "")
	if got := strings.ReplaceAll(noted, ";", ""); got != want {
		t.Errorf("noted is %q, want %q", got, want)
	}
	if len(pages) < 5 || len(entries) != len(pages) || !strings.Contains(entries[0], "kept: person0, number 1000; person1, number 1001, in group0; person2") {
		t.Errorf("%d pages, %d entries: %q", len(pages), len(entries), entries)
	}
	for len(people) < 1000 {
		people = append(people, people[20:]...)
	}
	if entries := Entries(people); len(entries) != mostEntries+1 || !strings.Contains(entries[mostEntries], "keeps more") {
		t.Errorf("%d entries: %q", len(entries), entries[len(entries)-1])
	}
	for text, want := range map[string]int{"": 0, "x": 1, strings.Repeat("y", 500) + "\n": 1, strings.Repeat("a b\n", pageLines): 1} {
		if got := Pages(text); len(got) != want {
			t.Errorf("%q has %d pages", text, len(got))
		}
	}
}

// Who asks in a trial is told, and not at the next start.
func TestAskInTrial(t *testing.T) {
	for how, c := range map[string]struct {
		entries []journal.Entry
		says    string
	}{
		"trial":   {[]journal.Entry{{Kind: journal.Boot, Trial: true}, {Kind: journal.State}}, "is on trial"},
		"blessed": {[]journal.Entry{{Kind: journal.Boot, Trial: true}, {Kind: journal.Blessed}}, ""},
		"kept":    {[]journal.Entry{{Kind: journal.Blessed}, {Kind: journal.Boot}}, ""},
		"again":   {[]journal.Entry{{Kind: journal.Blessed}, {Kind: journal.Boot, Trial: true}}, "is on trial"},
	} {
		shared := t.TempDir()
		for _, e := range c.entries {
			e.Boot, e.Version = "x", 2
			if err := bootinfo.AppendJournal(shared, e); err != nil {
				t.Fatal(err)
			}
		}
		err := Ask(shared)
		if _, there := os.Stat(filepath.Join(shared, RequestName)); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) || (there == nil) != (err == nil) {
			t.Errorf("%s: %v, %v", how, err, there)
		}
	}
}
