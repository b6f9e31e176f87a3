package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// Each command has a manual page, which says all that its --help says.
func TestManualPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code, _, stderr := run(t, map[string]string{"SOURCE_DATE_EPOCH": "1795900000"}, "man", dir); code != exitOK {
		t.Fatal(stderr)
	}
	c := command{}
	for name := range c.commands() {
		if _, err := os.Stat(filepath.Join(dir, "halogen-"+name+".1")); err != nil && name != "man" {
			t.Error(err)
		}
	}
	for name := range managed {
		if _, err := os.Stat(filepath.Join(dir, "halogen-release-"+name+".1")); err != nil {
			t.Error(err)
		}
	}
	for _, p := range manuals() {
		page, err := c.helpOf(p.command)
		if err != nil {
			t.Fatal(err)
		}
		first := strings.TrimSuffix("halogen-"+strings.ReplaceAll(p.command, " ", "-"), "-")
		checkPage(t, filepath.Join(dir, first+".1"), page)
	}
}

// checkPage has mandoc judge a page, and looks in what it shows for the options and for
// each word of a help text.
func checkPage(t *testing.T, file, help string) {
	t.Helper()
	testkit.Manual(t, file)
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(source, []byte(".Dd November 28, 2026\n")) {
		t.Errorf("%s has another date: %.40q", file, source)
	}
	for _, option := range regexp.MustCompile(`(?m)^  --(\S+)`).FindAllStringSubmatch(help, -1) {
		if !regexp.MustCompile(`(?m)^\.It Fl -` + option[1] + `( |$)`).Match(source) {
			t.Errorf("%s lacks --%s", file, option[1])
		}
	}
	shown, err := exec.Command(testkit.Need(t, "mandoc"), "-T", "ascii", "-O", "width=500", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	// Bold and underlined letters are struck over.
	text := strings.ToLower(regexp.MustCompile(`.\x08`).ReplaceAllString(string(shown), ""))
	letters := func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_/=", r) }
	have := map[string]bool{}
	for _, word := range strings.FieldsFunc(text, letters) {
		have[word] = true
	}
	help = strings.NewReplacer("usage: ", "", "Commands:", "", "Exit codes:", "", "Options:", "").Replace(help)
	for _, word := range strings.FieldsFunc(strings.ToLower(help), letters) {
		if !have[word] {
			t.Errorf("%s does not say %q", file, word)
		}
	}
}

func TestManualUse(t *testing.T) {
	if code, _, stderr := run(t, nil, "man"); code != exitUsage || !strings.Contains(stderr, "want one DIR") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if code, _, stderr := run(t, nil, "man", "/dev/null/x"); code != exitFailure || !strings.Contains(stderr, "/dev/null") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
