package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/initagent/command/commandtest"
)

// Every command of ours that the console has is named, and nothing else is.
func TestHelp(t *testing.T) {
	code, out, errs := commandtest.Run(cmd())
	if code != 0 || out != text || errs != "" {
		t.Fatalf("%d, %q, %q", code, out, errs)
	}
	mains, err := filepath.Glob("../*/main.go")
	if err != nil || len(mains) < 10 {
		t.Fatalf("%q, %v", mains, err)
	}
	for _, m := range mains {
		name := filepath.Base(filepath.Dir(m))
		source, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join("..", name, name+".8")); err != nil {
			t.Errorf("the man page: %v", err)
		}
		// ELSEWHERE in the Makefile, and what needs no words.
		elsewhere := []string{"help", "sh", "ota", "halogenctl", "changes", "pin", "phrase", "module-trust", "otad", "boot-report", "boot-once", "setup"}
		if slices.Contains(elsewhere, name) || !strings.Contains(string(source), "func main") {
			continue
		}
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(text) {
			t.Errorf("the text in uroot-cmds/help/main.go does not name %s", name)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 81 {
			t.Errorf("a line of %d characters: %q", len(line)-1, line)
		}
	}
}

// The chapter has a row for every command.
func TestChapter(t *testing.T) {
	chapter, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for line := range strings.Lines(string(chapter)) {
		if first, _, found := strings.Cut(strings.TrimPrefix(line, "| "), " | "); found && first != line {
			for _, name := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(first, -1) {
				named[name[1]] = true
			}
		}
	}
	mains, err := filepath.Glob("../*/main.go")
	if err != nil || len(mains) < 10 {
		t.Fatalf("%q, %v", mains, err)
	}
	for _, m := range mains {
		if name := filepath.Base(filepath.Dir(m)); name != "otad" && !named[name] {
			t.Errorf("uroot-cmds/README.md has no row for %s", name)
		}
	}
}

func TestUse(t *testing.T) { commandtest.Use(t, cmd()) }
