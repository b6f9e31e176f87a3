// Package manpage makes manual pages, in mdoc(7), of what commands say to --help, so
// that the two cannot differ.
//
// It refuses nothing: what it does not recognise becomes plain text, or literal lines
// where the help is indented.
package manpage

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Page is a manual page of section 1.
type Page struct {
	// Names of the page; the first is that of its file.
	Names   []string
	Summary string // one line, without a full stop
	// Help is what --help prints: lines with "usage: " first, text, and options below
	// a line "Options:", each with its text in the lines below it.
	Help string
	// ExitCodes are those of the program, such as "0 done, 1 failed".
	ExitCodes   string
	Environment []Entry
	Files       []Entry
	Examples    []Example
	See         []string // other pages, such as "uki.conf 5"
	Date        time.Time
}

// An Entry explains a name.
type Entry struct{ Name, Text string }

// An Example is a sentence and the lines that it is about.
type Example struct{ Text, Lines string }

// A writer collects the lines of a page.
type writer struct {
	lines        []string
	placeholders []string // words that stand for something, such as DIR
}

func (w *writer) line(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// Mdoc returns the page.
func (p Page) Mdoc() string {
	h := parseHelp(p.Help)
	w := &writer{placeholders: h.placeholders()}
	w.line(".Dd %s", p.Date.UTC().Format("January 2, 2006"))
	w.line(".Dt %s 1", strings.ToUpper(p.Names[0]))
	w.line(".Os HalogenOS")
	w.line(".Sh NAME")
	for i, name := range p.Names {
		comma := " ,"
		if i == len(p.Names)-1 {
			comma = ""
		}
		w.line(".Nm %s%s", name, comma)
	}
	w.line(".Nd %s", escape(p.Summary))
	w.line(".Sh SYNOPSIS")
	for _, usage := range h.usage {
		w.synopsis(usage)
	}
	w.line(".Sh DESCRIPTION")
	w.body(h.text)
	if len(h.options) > 0 {
		w.options(h.options)
	}
	w.entries("ENVIRONMENT", "Ev", p.Environment)
	w.entries("FILES", "Pa", p.Files)
	w.exitStatus(p.ExitCodes)
	w.examples(p.Examples)
	w.seeAlso(p.See)
	return strings.Join(w.lines, "\n") + "\n"
}

func (w *writer) options(all []option) {
	w.line(".Pp")
	w.line("The options are as follows:")
	w.line(".Bl -tag -width Ds")
	for _, o := range all {
		if o.value == "" {
			w.line(".It Fl -%s", o.name)
		} else {
			w.line(".It Fl -%s Ar %s", o.name, escape(o.value))
		}
		w.text(sentence(o.text))
	}
	w.line(".El")
}

func (w *writer) entries(section, macro string, all []Entry) {
	if len(all) == 0 {
		return
	}
	w.line(".Sh %s", section)
	w.line(".Bl -tag -width Ds")
	for _, e := range all {
		w.line(".It %s %s", macro, escape(e.Name))
		w.text(e.Text)
	}
	w.line(".El")
}

func (w *writer) exitStatus(codes string) {
	w.line(".Sh EXIT STATUS")
	w.line(".Bl -tag -width Ds")
	for _, code := range regexp.MustCompile(`(\d+) ([^,.;]+)`).FindAllStringSubmatch(codes, -1) {
		w.line(".It %s", code[1])
		w.line("%s", escape(sentence(code[2])))
	}
	w.line(".El")
}

func (w *writer) examples(all []Example) {
	if len(all) == 0 {
		return
	}
	w.line(".Sh EXAMPLES")
	for i, e := range all {
		if i > 0 {
			w.line(".Pp")
		}
		w.text(e.Text)
		w.literal(" -offset indent", strings.Split(strings.TrimSpace(e.Lines), "\n"))
	}
}

// seeAlso sorts the pages as mdoc(7) wants them: by section, then by name.
func (w *writer) seeAlso(see []string) {
	w.line(".Sh SEE ALSO")
	see = slices.Clone(see)
	slices.SortFunc(see, func(a, b string) int {
		return strings.Compare(a[len(a)-1:]+a, b[len(b)-1:]+b)
	})
	for i, page := range see {
		if i < len(see)-1 {
			page += " ,"
		}
		w.line(".Xr %s", page)
	}
}

// sentence starts with a capital, unless it is a name, and ends with a full stop.
func sentence(s string) string {
	word, _, _ := strings.Cut(s, " ")
	if word != "" && !strings.ContainsAny(word, "./_-") {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// escape makes one line of text mean itself.
func escape(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "--", `\-\-`)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
