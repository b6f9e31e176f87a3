package boot_test

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

// gone are the words that the documents do without, and what is said in their place.
var gone = map[string]string{
	`folders?`:                   "directory",
	`anew`:                       "again",
	`whoever`:                    "anyone who, the one who, no matter who",
	`he|him|his|himself|she|her`: "they, the owner, the attacker",
	`enrol|enrols|enrolment`:     "enroll, enrollment",
	`makes? no sense`:            "what failed, and on what",
	`another one than`:           "not the",
	`esp-differs|mended|watchdogReset|stopListeningFor`: "what is wrong, and what was done",
	`whilst|amongst|upon`:                               "while, among, on",
	`utili[sz]e[sd]?`:                                   "use",
	`simply|obviously|of course`:                        "nothing",
}

// goneFromCode are those that the code does without, too. The key "enrolments" of a file
// that machines have stays.
var goneFromCode = regexp.MustCompile(`(?i)folder|\b(anew|whoever|enrol|enrols|he|him|his|himself)\b|makes? no sense`)

// gonePackages are those that have another name now.
var gonePackages = map[string]string{
	`boot/rootvolume|\brootvolume\.`:                              "rootheader",
	`initagent/vault|\bvault\.`:                                   "rootlock",
	`initagent/systems|\bsystems\.[A-Z]`:                          "esp",
	`initagent/shared|\bshared\.(Report|Place|Linux)|journalfile`: "bootinfo",
}

// inCode is what is quoted: names of the code, commands, what a program prints.
var inCode = regexp.MustCompile("`[^`]*`")

// Words that have gone stay gone. The documents are what people read: chapters, manual
// pages written by hand, and uki.conf.
func TestWordsThatHaveGone(t *testing.T) {
	read := 0
	for _, name := range files(t, "*.md", "*.1", "*.5", "*.8", "uki.conf", "Makefile") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		read++
		// A quotation may go on in the next line; the lines stay what they are.
		text = inCode.ReplaceAllFunc(text, func(quoted []byte) []byte {
			return bytes.Repeat([]byte("\n"), bytes.Count(quoted, []byte("\n")))
		})
		for word, instead := range gone {
			for _, at := range regexp.MustCompile(`(?i)\b(`+word+`)\b`).FindAllIndex(text, -1) {
				t.Errorf("%s:%d: %q: say %s", name, 1+bytes.Count(text[:at[0]], []byte("\n")), text[at[0]:at[1]], instead)
			}
		}
	}
	if read < 30 {
		t.Errorf("only %d documents were read", read)
	}
}

func TestWordsThatHaveGoneFromCode(t *testing.T) {
	for _, name := range files(t, "*.go", "*.txt", "builder/osfiles/files", "builder/container") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "boot/words_test.go" {
			continue
		}
		for _, at := range goneFromCode.FindAllIndex(text, -1) {
			t.Errorf("%s:%d: %q: CONTRIBUTING.md has the word that is said instead", name, 1+bytes.Count(text[:at[0]], []byte("\n")), text[at[0]:at[1]])
		}
	}
}

// A package has one name, in imports, in the documents and in comments.
func TestPackagesThatHaveGone(t *testing.T) {
	for _, name := range files(t, "*.go", "*.md", "*.1", "*.5", "*.8", "Makefile", ".ci") {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "boot/words_test.go" {
			continue
		}
		for old, instead := range gonePackages {
			for _, at := range regexp.MustCompile(old).FindAllIndex(text, -1) {
				t.Errorf("%s:%d: %q: the package is %s", name, 1+bytes.Count(text[:at[0]], []byte("\n")), text[at[0]:at[1]], instead)
			}
		}
	}
}

// files lists the files of the tree that git's patterns name.
func files(t *testing.T, patterns ...string) []string {
	t.Helper()
	list := exec.Command("git", append([]string{"ls-files", "-z", "--"}, patterns...)...)
	list.Dir = ".."
	names, err := list.Output()
	if err != nil {
		testkit.Skip(t, "this is not a git tree: "+err.Error())
	}
	return strings.Split(strings.TrimRight(string(names), "\x00"), "\x00")
}
