package protocol

import (
	"slices"
	"strings"
	"testing"
)

func TestFields(t *testing.T) {
	tests := []struct {
		line string
		want []string
		err  string
	}{
		{"", nil, ""},
		{"  report\t", []string{"report"}, ""},
		{`write /x "a b\n" it's`, []string{"write", "/x", "a b\n", "it's"}, ""},
		{`write /x ""`, []string{"write", "/x", ""}, ""},
		{`write "/x`, nil, "no end"},
		{`write "/x"y`, nil, "no space"},
	}
	for _, tt := range tests {
		got, err := Fields(tt.line)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Fields(%q): %v; want %q", tt.line, err, tt.err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("Fields(%q) = %q, %v; want %q", tt.line, got, err, tt.want)
		}
	}
}

func TestLine(t *testing.T) {
	if line, err := Line("write", "/x", strings.Repeat("x", MaxLine)); err == nil {
		t.Errorf("a line of %d bytes was made", len(line))
	}
}

func FuzzLine(f *testing.F) {
	f.Add("run", "a b", `"`)
	f.Add("", "\x00\xff\n", "ü")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		words := []string{a, b, c}
		line, err := Line(words...)
		if err != nil {
			return
		}
		if strings.ContainsAny(line, "\r\n\x03\x04\x7f") {
			t.Fatalf("%q holds what a terminal takes for itself", line)
		}
		got, err := Fields(line)
		if err != nil || !slices.Equal(got, words) {
			t.Fatalf("Fields(%q) = %q, %v; want %q", line, got, err, words)
		}
	})
}
