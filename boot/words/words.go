// Package words is the catalogue of what a person is asked and told on the screen before the
// system runs: in English, which the files with constants have, and in each language of which there is a file
// beside it, such as de.po, in the format of GNU gettext.
//
// It refuses to lose a text: what a language does not have is said in English. The log and the
// journal are English in every language: what they say is searched for.
package words

import (
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// A Language is one that the catalogue has, by its code of ISO 639-1, such as "de". The zero
// value is English.
type Language string

// English is what the code has, and what is said where nothing else is asked for.
const English Language = ""

// english is the code of it.
const english = "en"

//go:embed *.po
var files embed.FS

// Codes returns the codes of all languages in order, English among them.
func Codes() []string {
	codes := []string{english}
	names, _ := files.ReadDir(".") // it is in the program
	for _, n := range names {
		codes = append(codes, strings.TrimSuffix(n.Name(), ".po"))
	}
	slices.Sort(codes)
	return codes
}

// Find returns the language with a code. One that the catalogue does not have is an error,
// which lists those that it has.
func Find(code string) (Language, error) {
	if code == english {
		return English, nil
	}
	if !slices.Contains(Codes(), code) {
		return English, fmt.Errorf("%.40q is not a language of the screens before the system runs: there are %s", code, strings.Join(Codes(), ", "))
	}
	return Language(code), nil
}

// OfLocale returns the language of a locale by its name in setlocale(3), such as de_AT.UTF-8;
// known is false where the catalogue does not have it.
func OfLocale(locale string) (l Language, known bool) {
	code := locale
	if end := strings.IndexAny(locale, "_.@"); end >= 0 {
		code = locale[:end]
	}
	l, err := Find(code)
	return l, err == nil
}

// Code is the language's code, "en" for English.
func (l Language) Code() string {
	if l == English {
		return english
	}
	return string(l)
}

// Say returns a text of the catalogue, which is a format of package fmt, with what belongs in
// it.
func (l Language) Say(format string, args ...any) string {
	if l == English {
		return fmt.Sprintf(format, args...)
	}
	return fmt.Sprintf(l.Text(format), l.told(args)...)
}

// Text returns a text of the catalogue that has nothing to be put in.
func (l Language) Text(text string) string {
	if l == English {
		return text
	}
	if translated := translations(l)[text]; translated != "" {
		return translated
	}
	return text
}

// Help is the list of the recovery console's commands, in pieces that stay together.
func (l Language) Help() (pieces []string) {
	for _, text := range []string{HelpTitle, HelpCorrupt, HelpNewer, HelpTPM, HelpKeys, HelpESP, HelpLost, HelpGivenAway, HelpOthers, HelpEnd} {
		pieces = append(pieces, l.Text(text))
	}
	return pieces
}

// Yes reports whether an answer is yes: the language's key for it, or the English one.
func (l Language) Yes(answer string) bool {
	answer = strings.TrimSpace(answer)
	return strings.EqualFold(answer, YesKey) || strings.EqualFold(answer, l.Text(YesKey))
}

// YesOrNoTyped is AskYes or AskNo for what was typed for one of them, in whatever case: the word,
// or its first letter, of any language; "" for anything else.
func YesOrNoTyped(line string) string {
	line = strings.ToLower(strings.TrimSpace(line))
	for _, code := range Codes() {
		l, _ := Find(code) // it has a file
		for _, word := range []string{AskYes, AskNo} {
			if said := l.Text(word); line != "" && (line == said || line == said[:1]) {
				return word
			}
		}
	}
	return ""
}

// A Line is a text of the catalogue with what belongs in it, for a language that is known later.
type Line struct {
	said   string // in English
	format string
	args   []any
}

// Linef returns a line.
func Linef(format string, args ...any) Line { return Line{fmt.Sprintf(format, args...), format, args} }

// Fixed returns a line that has nothing to be put in.
func Fixed(text string) Line { return Line{text, text, nil} }

// IsZero reports whether nothing is said.
func (n Line) IsZero() bool { return n.said == "" }

// String is the line in English.
func (n Line) String() string { return n.said }

// MarshalText implements [encoding.TextMarshaler]: what programs read is English.
func (n Line) MarshalText() ([]byte, error) { return []byte(n.said), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. What was read is English alone.
func (n *Line) UnmarshalText(text []byte) error {
	*n = Fixed(string(text))
	return nil
}

// A List is several lines that are said as one.
type List []Line

// String is the list in English.
func (n List) String() string { return English.List(n, ", ") }

// List puts the lines of a list together in the language.
func (l Language) List(n List, between string) string {
	all := make([]string, len(n))
	for i := range n {
		all[i] = l.Line(n[i])
	}
	return strings.Join(all, between)
}

// Line returns a line in the language.
func (l Language) Line(n Line) string {
	switch {
	case l == English:
		return n.said
	case len(n.args) == 0:
		return l.Text(n.format)
	}
	return fmt.Sprintf(l.Text(n.format), l.told(n.args)...)
}

// An Error is one whose text the catalogue has. It is English, as the log is; [Language.Error]
// is for who reads the screen.
type Error struct {
	said   error
	format string
	args   []any
}

// Errorf returns an error with a text of the catalogue, as fmt.Errorf does.
func Errorf(format string, args ...any) error {
	return &Error{fmt.Errorf(format, args...), format, args}
}

// Error implements error.
func (e *Error) Error() string { return e.said.Error() }

// Unwrap leads to what was wrapped by %w.
func (e *Error) Unwrap() error { return e.said }

// Error says an error in the language, as far as the catalogue has it: what the machine's parts
// say of themselves is English.
func (l Language) Error(err error) string {
	if e, ok := err.(*Error); ok && l != English { // an error around it is not the catalogue's
		return fmt.Errorf(l.Text(e.format), l.told(e.args)...).Error()
	}
	return err.Error()
}

// told are the arguments of a text, translated where the catalogue has them.
func (l Language) told(args []any) []any {
	out := slices.Clone(args)
	for i, a := range out {
		switch a := a.(type) {
		case *Error:
			out[i] = errors.New(l.Error(a))
		case Line:
			out[i] = l.Line(a)
		case List:
			out[i] = l.List(a, ", ")
		}
	}
	return out
}

// read are the languages that were read, by their codes.
var read sync.Map

// translations are a language's texts, by the English ones.
func translations(l Language) map[string]string {
	if have, ok := read.Load(l); ok {
		return have.(map[string]string)
	}
	text, _ := files.ReadFile(string(l) + ".po") // a language without a file has no texts
	of, err := parse(string(text))
	if err != nil { // the tests have read it
		of = nil
	}
	read.Store(l, of)
	return of
}
