package manpage

import (
	"regexp"
	"slices"
	"strings"
)

var (
	group   = regexp.MustCompile(`\[[^\]]*\](?:\.\.\.)?|\S+`)
	quoted  = regexp.MustCompile(`(\(?)'(halogen(?: [^' ]+)+)'([.,;:)]*)`)
	flagged = regexp.MustCompile(`^--([a-z][a-z-]*)([.,;:)]*)$`)
	capital = regexp.MustCompile(`^([A-Z][A-Z-]*)([.,;:)]*)$`)
	named   = regexp.MustCompile(`^([A-Z]+(?:_[A-Z]+)+)([.,;:)]*)$`)
)

// synopsis writes one line of the usage: the program's name, and what is given to it.
func (w *writer) synopsis(usage string) {
	program, rest, _ := strings.Cut(usage, " ")
	w.line(".Nm %s", program)
	var run []string
	flush := func() {
		if len(run) > 0 {
			w.line(".%s", strings.Join(macros(run), " "))
			run = nil
		}
	}
	for _, g := range group.FindAllString(rest, -1) {
		if inner, ok := strings.CutPrefix(g, "["); ok {
			flush()
			inner, dots, _ := strings.Cut(inner, "]")
			words := macros(strings.Fields(inner))
			if dots != "" {
				words = append(words, dots)
			}
			w.line(".Op %s", strings.Join(words, " "))
			continue
		}
		run = append(run, g)
	}
	flush()
}

// macros marks words up: options, what stands for something, and commands.
func macros(words []string) (out []string) {
	last := ""
	for _, word := range words {
		for i, part := range strings.Split(word, "|") {
			if i > 0 {
				out = append(out, "|")
			}
			kind := ""
			switch {
			case part == "":
				continue
			case part == "...":
				out = append(out, part)
				continue
			case strings.HasPrefix(part, "--"):
				kind, part = "Fl", part[1:]
			case part == strings.ToLower(part):
				kind = "Cm"
			default:
				kind = "Ar"
			}
			if kind != last || kind == "Fl" {
				out = append(out, kind)
			}
			out, last = append(out, part), kind
		}
	}
	return out
}

// body writes paragraphs: text, lists of terms, and literal lines.
func (w *writer) body(paragraphs [][]string) {
	for i, lines := range paragraphs {
		if i > 0 && !strings.HasPrefix(lines[0], "  ") {
			w.line(".Pp") // a list or literal lines make a space of their own
		}
		for len(lines) > 0 {
			indented := strings.HasPrefix(lines[0], "  ")
			n := 1
			for n < len(lines) && strings.HasPrefix(lines[n], "  ") == indented {
				n++
			}
			part := lines[:n]
			if lines = lines[n:]; !indented {
				w.text(strings.Join(part, " "))
			} else if terms, ok := parseTerms(part); ok {
				w.terms(terms)
			} else {
				w.literal("", part)
			}
		}
	}
}

// parseTerms reads lines that have names on the left and their text in one column on
// the right. Names of several words that are not paths are not taken for terms: what
// stands beside them are commands, whose lines matter. So do those of a file.
func parseTerms(lines []string) (all []Entry, ok bool) {
	at := regexp.MustCompile(`^  \S+(?: \S+)*   *(?:  )?`).FindStringIndex(lines[0])
	if at == nil || at[1] == len(lines[0]) || lines[0][at[1]-2] != ' ' {
		return nil, false
	}
	column := at[1]
	for _, line := range lines {
		if !strings.Contains(strings.TrimSpace(line), " ") && line[2] != ' ' {
			all = append(all, Entry{Name: line[2:]}) // too long for the column
			continue
		}
		if len(line) <= column || line[column-1] != ' ' || line[column] == ' ' {
			return nil, false
		}
		name, text := strings.TrimSpace(line[:column]), line[column:]
		switch {
		case strings.Contains(name, " ") && !strings.Contains(name, "/"):
			return nil, false
		case name != "" && line[2] != ' ':
			all = append(all, Entry{name, text})
		case name == "" && len(all) > 0 && strings.Contains(all[len(all)-1].Name, "/"):
			return nil, false
		case name == "" && len(all) > 0:
			all[len(all)-1].Text = strings.TrimSpace(all[len(all)-1].Text + " " + text)
		default:
			return nil, false
		}
	}
	return all, true
}

func (w *writer) terms(all []Entry) {
	w.line(".Bl -tag -width Ds")
	for _, e := range all {
		macro := "No"
		switch {
		case strings.ContainsAny(e.Name, "/."):
			macro = "Pa"
		case regexp.MustCompile(`^[a-z-]+$`).MatchString(e.Name):
			macro = "Cm"
		}
		w.line(".It %s %s", macro, escape(e.Name))
		w.text(e.Text)
	}
	w.line(".El")
}

// literal writes lines as they are, without what all of them are indented by.
func (w *writer) literal(offset string, lines []string) {
	indent := len(lines[0])
	for _, line := range lines {
		if line != "" {
			indent = min(indent, len(line)-len(strings.TrimLeft(line, " ")))
		}
	}
	w.line(".Bd -literal%s", offset)
	for _, line := range lines {
		w.line("%s", escape(line[min(indent, len(line)):]))
	}
	w.line(".Ed")
}

// text writes a paragraph, a line a sentence at most, with options and what stands
// for something marked up.
func (w *writer) text(s string) {
	for len(s) > 0 {
		at := quoted.FindStringSubmatchIndex(s)
		if at == nil {
			w.words(strings.Fields(s))
			return
		}
		w.words(strings.Fields(s[:at[0]]))
		w.macro("Ic", strings.TrimSpace(s[at[2]:at[3]]+" "+escape(s[at[4]:at[5]])), s[at[6]:at[7]])
		s = s[at[1]:]
	}
}

func (w *writer) words(words []string) {
	var line []string
	flush := func() {
		if len(line) > 0 {
			w.line("%s", escape(strings.Join(line, " ")))
			line = nil
		}
	}
	for _, word := range words {
		macro, m := "", flagged.FindStringSubmatch(word)
		switch {
		case m != nil:
			macro, m[1] = "Fl", "-"+m[1]
		case named.MatchString(word):
			macro, m = "Ev", named.FindStringSubmatch(word)
		case capital.MatchString(word):
			if m = capital.FindStringSubmatch(word); slices.Contains(w.placeholders, m[1]) {
				macro = "Ar"
			}
		}
		if macro != "" {
			flush()
			w.macro(macro, m[1], m[2])
			continue
		}
		line = append(line, word)
		if strings.HasSuffix(word, ".") || len(strings.Join(line, " ")) > 65 {
			flush()
		}
	}
	flush()
}

// macro writes a word with a macro; the punctuation after it is not part of it.
func (w *writer) macro(name, word, punctuation string) {
	line := "." + name + " " + word
	for _, p := range punctuation {
		line += " " + string(p)
	}
	w.line("%s", line)
}
