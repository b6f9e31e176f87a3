package manpage

import (
	"regexp"
	"strings"
)

// help is what --help says, in its parts.
type help struct {
	usage   []string   // without "usage: "
	text    [][]string // paragraphs, as lines
	options []option
}

type option struct{ name, value, text string }

// parseHelp takes a help text apart.
func parseHelp(s string) help {
	var h help
	s, options, _ := strings.Cut(s, "\nOptions:\n")
	h.options = parseOptions(options)
	head, rest, _ := strings.Cut(s, "\n\n")
	for line := range strings.Lines(head) {
		h.usage = append(h.usage, strings.TrimSpace(strings.TrimPrefix(line, "usage: ")))
	}
	var paragraph []string
	for line := range strings.Lines(rest + "\n\n") {
		line = strings.TrimRight(line, " \n")
		if line != "" {
			paragraph = append(paragraph, line)
		} else if paragraph != nil {
			h.text, paragraph = append(h.text, paragraph), nil
		}
	}
	return h
}

func parseOptions(s string) (all []option) {
	head := regexp.MustCompile(`^  --(\S+) ?(.*)$`)
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\n")
		if m := head.FindStringSubmatch(line); m != nil {
			all = append(all, option{name: m[1], value: m[2]})
		} else if len(all) > 0 {
			last := &all[len(all)-1]
			last.text = strings.TrimSpace(last.text + " " + strings.TrimSpace(line))
		}
	}
	return all
}

// placeholders are the words in capitals that the usage and the options have.
func (h help) placeholders() (all []string) {
	word := regexp.MustCompile(`\b[A-Z][A-Z-]*\b`)
	for _, u := range h.usage {
		all = append(all, word.FindAllString(u, -1)...)
	}
	for _, o := range h.options {
		all = append(all, word.FindAllString(o.value, -1)...)
	}
	return all
}
