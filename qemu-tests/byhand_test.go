package qemutests

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// byHand returns the commands of boot/README.md as they stand there. The first
// block only sets variables, each to an example: those are for the person to name.
func byHand(t testing.TB) (variables []string, script string) {
	t.Helper()
	text, err := os.ReadFile("../boot/README.md")
	must(t, err)
	var blocks []string
	within := false
	for line := range strings.Lines(string(text)) {
		command, ok := strings.CutPrefix(line, "    ")
		if ok && !within {
			blocks = append(blocks, "")
		}
		if within = ok; ok {
			blocks[len(blocks)-1] += command
		}
	}
	if len(blocks) < 2 {
		t.Fatalf("boot/README.md has %d blocks of commands; want one that sets variables, and those that install", len(blocks))
	}
	for _, match := range regexp.MustCompile(`(?m)(?:^| )([A-Z]+)=\S`).FindAllStringSubmatch(blocks[0], -1) {
		variables = append(variables, match[1])
	}
	slices.Sort(variables)
	return slices.Compact(variables), strings.Join(blocks[1:], "")
}

// TestByHand: the steps use the tools that the text names and no others, and the
// variables that it sets.
func TestByHand(t *testing.T) {
	variables, script := byHand(t)
	tools := []string{"sgdisk", "mkfs.vfat", "mount", "mkdir", "cp", "umount", "dd"}
	for line := range strings.Lines(script) {
		if word, _, _ := strings.Cut(line, " "); !slices.Contains(tools, word) {
			t.Errorf("%q: none of %q", line, tools)
		}
	}
	for _, match := range regexp.MustCompile(`\$\{?([A-Za-z_]+)`).FindAllStringSubmatch(script, -1) {
		if !slices.Contains(variables, match[1]) {
			t.Errorf("the steps use %s, which is not among %q", match[1], variables)
		}
	}
}
