package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Manual has mandoc judge a manual page, checks that its title is that of the file
// and returns the terms that it explains: what stands after `.It Ic`, in order.
func Manual(t testing.TB, file string) (terms []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(Need(t, "mandoc"), "-T", "lint", "-W", "warning", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	name := filepath.Base(file)
	section := strings.TrimPrefix(filepath.Ext(name), ".")
	for _, want := range []string{".Dt " + strings.ToUpper(strings.TrimSuffix(name, "."+section)) + " " + section, ".Os HalogenOS", ".Sh SEE ALSO"} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("%s lacks %q", name, want)
		}
	}
	for _, found := range regexp.MustCompile(`(?m)^\.It Ic (\S+)`).FindAllStringSubmatch(string(text), -1) {
		terms = append(terms, found[1])
	}
	return terms
}

// Explains checks that a manual page explains each of the terms, and no other.
func Explains(t testing.TB, file string, want []string) {
	t.Helper()
	have := Manual(t, file)
	for _, term := range want {
		if !slices.Contains(have, term) {
			t.Errorf("%s does not explain %s", file, term)
		}
	}
	for _, term := range have {
		if !slices.Contains(want, term) {
			t.Errorf("%s explains %s, which there is not", file, term)
		}
	}
}
