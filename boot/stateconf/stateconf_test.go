package stateconf

import (
	"strings"
	"testing"
)

func TestDefault(t *testing.T) {
	entries, err := Parse([]byte(Default))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 8 || entries[0] != (Entry{Overlay, "/etc"}) || entries[1] != (Entry{Bind, "/var"}) {
		t.Errorf("default parses to %v", entries)
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"bind":                               "have 1 words",
		"bind /a b":                          "have 3 words",
		"link /var":                          `unknown mode "link"`,
		"bind var":                           "not an absolute path",
		"bind /var/":                         "not an absolute path",
		"bind /var/../usr":                   "not an absolute path",
		"overlay /a,b":                       "not an absolute path",
		"bind /usr":                          "stays read-only",
		"overlay /usr/lib":                   "stays read-only",
		"overlay /usr/lib/modules":           "stays read-only",
		"bind /":                             "stays read-only",
		"bind /proc/sys":                     "stays read-only",
		"bind /var\nbind /var":               "line 2: directory /var is named twice",
		"bind /var\nbind /var/lib":           "lie in one another",
		"bind /var/lib\n\n# x\noverlay /var": "line 4",
		strings.Repeat("#", MaxSize+1):       "more than",
	} {
		_, err := Parse([]byte(text))

		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.40q) = %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Default))
	f.Add([]byte("bind /var\noverlay /etc # x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := Parse(text)
		if err != nil {
			return
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Path, "/") || strings.Contains(e.Path, "..") && strings.Contains(e.Path, "/../") {
				t.Fatalf("accepted %q", e.Path)
			}
		}
	})
}

func TestGoesBack(t *testing.T) {
	for _, c := range []struct {
		e    Entry
		want bool
	}{
		{Entry{Bind, "/var"}, true}, {Entry{Bind, "/root"}, true}, {Entry{Bind, "/homes"}, true},
		{Entry{Bind, "/home"}, false}, {Entry{Bind, "/home/anna"}, false},
		{Entry{Overlay, "/etc"}, false}, {Entry{Tmpfs, "/tmp"}, false},
	} {
		if got := c.e.GoesBack(); got != c.want {
			t.Errorf("%+v: %v", c.e, got)
		}
	}
}
