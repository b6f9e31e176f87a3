package words

import (
	"strings"
	"testing"
)

// What the firmware's variable holds is a language of the catalogue, or refused.
func FuzzParseRemembered(f *testing.F) {
	for _, code := range Codes() {
		l, err := Find(code)
		if err != nil {
			f.Fatal(err)
		}
		if got, err := ParseRemembered(l.Remember()); got != l || err != nil {
			f.Errorf("%s: %q, %v", code, got, err)
		}
		f.Add(l.Remember())
	}
	f.Add([]byte("language 1 xx"))
	f.Add([]byte("language 1 de\x00"))
	f.Add([]byte("language 2 de"))
	f.Add([]byte(strings.Repeat("l", 1<<10)))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseRemembered(text)
		if err == nil && string(text) != string(l.Remember()) {
			t.Errorf("%q: %q, %v", text, l, err)
		}
	})
}
