package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command/commandtest"
)

// reads is somebody who reads a language, on a screen of some rows, and presses some keys.
func reads(l words.Language, rows int, keys string) person {
	return person{func() words.Language { return l }, func() int { return rows }, strings.NewReader(keys)}
}

func list(l words.Language) string { return strings.Join(l.Help(), "") }

// On a low screen the list comes in pages, each of which it has room for, until nobody reads on.
func TestPages(t *testing.T) {
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		whole := list(l)
		for _, rows := range []int{0, 20, 24, 25, 30, 37, 50} {
			_, out, _ := commandtest.Run(cmd(reads(l, rows, strings.Repeat("\n", 9))))
			n := len(pages(l.Help(), rows))
			shown := strings.Split(out, strings.TrimSpace(l.Say(words.PageOf, 1, n)))
			if all := rows == 0 || strings.Count(whole, "\n") < rows; all != (n == 1) || all && out != whole {
				t.Errorf("%s, %d rows: %d pages:\n%s", code, rows, n, out)
			}
			for i, page := range pages(l.Help(), rows) {
				if high := strings.Count(page, "\n"); rows > 0 && high > rows-1 || !strings.Contains(out, page) {
					t.Errorf("%s, %d rows: page %d has %d:\n%s", code, rows, i+1, high, page)
				}
			}
			if _, first, _ := commandtest.Run(cmd(reads(l, rows, ""))); n > 1 && first != shown[0]+l.Say(words.PageOf, 1, n) {
				t.Errorf("%s, %d rows: without a key it shows:\n%s", code, rows, first)
			}
		}
	}
}

// In each language the list names the same commands, in the same order, fits a screen's width, and has the
// list's other half in that language.
func TestLanguages(t *testing.T) {
	typed := regexp.MustCompile(`(?m)^ {2}(?: {4})?([a-z].*?)  `)
	text := list(words.English)
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		_, out, _ := commandtest.Run(cmd(reads(l, 0, "")))
		if got, want := typed.FindAllString(out, -1), typed.FindAllString(text, -1); !slices.Equal(got, want) || len(got) < 20 {
			t.Errorf("%s: %q, want %q", code, got, want)
		}
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(line); n > 81 {
				t.Errorf("%s: a line of %d characters: %q", code, n-1, line)
			}
			if l != words.English && len(line) > 12 && strings.Contains(text, line) {
				t.Errorf("%s: a line in English: %q", code, line)
			}
		}
	}
}

// Every command of ours that the console has is named, and nothing else is.
func TestHelp(t *testing.T) {
	text := list(words.English)
	code, out, errs := commandtest.Run(cmd(reads(words.English, 0, "")))
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
			t.Errorf("the text in boot/words/help.go does not name %s", name)
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

func TestUse(t *testing.T) { commandtest.Use(t, cmd(reads(words.English, 0, ""))) }
