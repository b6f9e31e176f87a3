package firstboot

import (
	"path"
	"testing"
)

func TestNames(t *testing.T) {
	for _, n := range []int{0, 1, 255} {
		if got, ok := Count(path.Base(Name(n))); !ok || got != n {
			t.Errorf("Count(Name(%d)) = %d, %v", n, got, ok)
		}
	}
	for _, name := range []string{"", "keys-.json", "keys-01.json", "keys--1.json", "keys-256.json", "keys-1.json.new", "Keys-1.json", "keys-1"} {
		if n, ok := Count(name); ok {
			t.Errorf("Count(%q) = %d", name, n)
		}
	}
}

func TestParseRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"cut":           `{"format":1,"sealed":{"ver`,
		"unknown field": `{"format":1,"extra":1}`,
		"format":        `{"format":2,"sealed":{},"keys":"","wanted":"","enrolments":0}`,
		"no secret":     `{"format":1,"sealed":{},"keys":"","wanted":"","enrolments":0}`,
		"two values":    `{"format":1} {}`,
	} {
		if p, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if _, err := Parse(make([]byte, MaxSize+1)); err == nil {
		t.Error("a file that is too large was parsed")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"sealed":{"version":1,"kind":"nv"},"keys":"AA==","wanted":"AA==","enrolments":0}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := p.Encode(); err != nil || len(again) == 0 {
			t.Fatalf("parsed and not encodable: %v", err)
		}
	})
}
