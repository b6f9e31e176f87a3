package config

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// An entry is one `Key=value` of the file.
// An entry without a key is the head of a section.
type entry struct {
	section, key, value string
	line                int // of the key, or of the head, from 1
}

// A LineError is a fault of the file, with the line that it is in.
type LineError struct {
	Line int
	Err  error
}

// Error implements error.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the fault itself.
func (e *LineError) Unwrap() error { return e.Err }

func fault(line int, format string, args ...any) error {
	return &LineError{Line: line, Err: fmt.Errorf(format, args...)}
}

const maxFile = 1 << 20 // bytes of a configuration

// parse reads the format that ukify reads: sections in brackets, `Key=value`,
// comments from '#' at the start of a line or after a space, and values that
// go on in lines that are indented. A key that is given twice is refused,
// where ukify takes the last.
func parse(text string) ([]entry, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("configuration has %d bytes, more than %d", len(text), maxFile)
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, errors.New("configuration is not UTF-8 text")
	}
	var p parser
	for i, line := range strings.Split(text, "\n") {
		if err := p.line(i+1, strings.TrimSuffix(line, "\r")); err != nil {
			return nil, err
		}
	}
	return p.entries, nil
}

type parser struct {
	entries []entry
	section string
	open    bool // the last line was a key or went on with its value
}

func (p *parser) line(number int, raw string) error {
	text := strings.TrimSpace(withoutComment(raw))
	indented := raw != "" && (raw[0] == ' ' || raw[0] == '\t')
	switch {
	case text == "":
		// A comment between the lines of a value does not end it; an empty
		// line does.
		if strings.TrimSpace(raw) == "" {
			p.open = false
		}
		return nil
	case indented && p.open:
		last := &p.entries[len(p.entries)-1]
		last.value = strings.TrimPrefix(last.value+"\n"+text, "\n")
		return nil
	case indented:
		return fault(number, "%q is indented but continues no value", text)
	case text[0] == '[':
		return p.header(number, text)
	}
	return p.assign(number, text)
}

func (p *parser) header(number int, text string) error {
	name, ok := strings.CutSuffix(text[1:], "]")
	if !ok || name == "" || strings.ContainsAny(name, "[]") {
		return fault(number, "%q is not a section: want [Name]", text)
	}
	p.section, p.open = name, false
	p.entries = append(p.entries, entry{section: name, line: number})
	return nil
}

func (p *parser) assign(number int, text string) error {
	key, value, ok := strings.Cut(text, "=")
	key = strings.TrimSpace(key)
	switch {
	case !ok || key == "":
		return fault(number, "%q is not Key=value, such as ImageID=my-os", text)
	case p.section == "":
		return fault(number, "key %s stands before any section", key)
	}
	for _, e := range p.entries {
		if e.section == p.section && e.key == key {
			return fault(number, "key %s of [%s] is given again, first in line %d: take one of them out", key, p.section, e.line)
		}
	}
	p.entries = append(p.entries, entry{p.section, key, strings.TrimSpace(value), number})
	p.open = true
	return nil
}

// withoutComment cuts a comment off: '#' at the start or after white space.
func withoutComment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}
