package stateconf

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// state.conf(5) explains each mode, shows the default, and names what is refused.
func TestManual(t *testing.T) {
	testkit.Explains(t, "state.conf.5", []string{string(Overlay), string(Bind), string(Tmpfs)})
	page, err := os.ReadFile("state.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	if lines := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(Default, ""); !strings.Contains(string(page), "indent\n"+lines+".Ed") {
		t.Errorf("it lacks the default\n%s", lines)
	}
	for _, dir := range fixed {
		if !regexp.MustCompile(`(?m)^\.Pa .*` + dir + `( |$)`).Match(page) {
			t.Errorf("it does not say that %s is refused", dir)
		}
	}
}
