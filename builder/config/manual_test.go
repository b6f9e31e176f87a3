package config

import (
	"os"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/scan"
)

// uki.conf(5) explains each key and each rule of [Allow], and the file that comes with
// HalogenOS knows each key of ours.
func TestManual(t *testing.T) {
	shipped, err := os.ReadFile("../../uki.conf")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for section, keys := range new(reader).keys() {
		for key := range keys {
			want = append(want, key)
			if !strings.Contains(string(shipped), key+"=") && key != "BootManager" {
				t.Errorf("uki.conf says nothing of %s in [%s]", key, section)
			}
		}
	}
	for key := range new(reader).extensionKeys(new(Extension)) {
		want = append(want, key)
		if !strings.Contains(string(shipped), key+"=") {
			t.Errorf("uki.conf says nothing of %s in [Extension NAME]", key)
		}
	}
	for _, r := range scan.Rules() {
		want = append(want, r.Name)
	}
	testkit.Explains(t, "uki.conf.5", want)
}

// It names each language that there is.
func TestManualLanguages(t *testing.T) {
	page, err := os.ReadFile("uki.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), ".It Ic Language\n")
	section, _, _ = strings.Cut(section, ".It ")
	for _, code := range words.Codes() {
		if !strings.Contains(section, "\n.Li "+code+" ") {
			t.Errorf("uki.conf(5) does not say that Language can be %s", code)
		}
	}
}

// The map in builder/README.md has a row for each key and for no other; the functions that it
// names are looked up where the README's others are (initagent/docs_test.go).
func TestMap(t *testing.T) {
	chapter, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(chapter), "### A map: where each key of `uki.conf` ends up\n")
	if !found {
		t.Fatal("there is no map of the keys")
	}
	table, _, _ = strings.Cut(table, "\n#")
	rows := map[string]string{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 4 && strings.HasPrefix(line, "| `") {
			rows[strings.TrimPrefix(cells[0], "| ")] = cells[1]
		}
	}
	for section, keys := range new(reader).keys() {
		for key := range keys {
			row := "`" + key + "`"
			if key == "Modules" {
				row += " of `[" + section + "]`"
			}
			if !strings.Contains(rows[row], ".") || !strings.HasPrefix(rows[row], "`") {
				t.Errorf("the map does not say what reads %s of [%s]: %q", key, section, rows[row])
			}
			delete(rows, row)
		}
	}
	for row := range rows {
		t.Errorf("the map has a row %s, which is not a key", row)
	}
}

// Its shortest example is complete.
func TestManualExample(t *testing.T) {
	page, err := os.ReadFile("uki.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(page), ".Sh EXAMPLES")
	if !found {
		t.Fatal("there are no examples")
	}
	_, example, _ = strings.Cut(example, ".Bd -literal -offset indent\n")
	example, _, _ = strings.Cut(example, ".Ed\n")
	if c, err := Parse(example, t.TempDir()); err != nil || c.ImageID != "my-os" {
		t.Errorf("%v\n%s", err, example)
	}
}
