package words

import "testing"

// The language is what the command line names last; what it names otherwise is English.
func TestOfCmdline(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]Language{
		"":                                        English,
		"quiet lockdown=integrity\n":              English,
		"quiet halogen.language=de panic=10":      "de",
		"halogen.language=en":                     English,
		"halogen.language=xx":                     English,
		"halogen.language=":                       English,
		"xhalogen.language=de":                    English,
		"halogen.language=de halogen.language=en": English,
	} {
		if got := OfCmdline(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
