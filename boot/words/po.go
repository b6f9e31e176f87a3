package words

import (
	"fmt"
	"strconv"
	"strings"
)

// parse reads a file of translations as GNU gettext writes it (manual, section "The Format of PO
// Files"): comments, and pairs of msgid and msgstr, each a string in quotation marks or several
// one after another. Plurals and contexts, which no text needs, are errors, and so are a text
// that comes twice and one that is marked as doubtful. The header, which translates the empty
// text, is left out.
func parse(file string) (map[string]string, error) {
	var (
		p    = pair{of: map[string]string{}}
		line int
	)
	for text := range strings.Lines(file) {
		line++
		if err := p.line(strings.TrimSpace(text)); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
	}
	if err := p.end(); err != nil {
		return nil, fmt.Errorf("after line %d: %w", line, err)
	}
	delete(p.of, "")
	return p.of, nil
}

// A pair is what is being read, and what was.
type pair struct {
	of      map[string]string
	id, str strings.Builder
	into    *strings.Builder // what the next string belongs to; nil before the first pair
}

func (p *pair) line(text string) error {
	switch keyword, rest, _ := strings.Cut(text, " "); {
	case text == "":
		return nil
	case strings.HasPrefix(text, "#,") && strings.Contains(text, "fuzzy"):
		return fmt.Errorf("%s: the text was not looked at since the English one has changed", text)
	case text[0] == '#':
		return nil
	case text[0] == '"':
		return p.add(text)
	case keyword == "msgid":
		if err := p.end(); err != nil {
			return err
		}
		p.into = &p.id
		return p.add(rest)
	case keyword == "msgstr" && p.into == &p.id:
		p.into = &p.str
		return p.add(rest)
	default:
		return fmt.Errorf("%.60q is neither msgid, msgstr after it, a string nor a comment", text)
	}
}

func (p *pair) add(quoted string) error {
	text, err := strconv.Unquote(quoted)
	if err != nil || p.into == nil || quoted[0] != '"' {
		return fmt.Errorf("%.60q is not a string in its place", quoted)
	}
	p.into.WriteString(text)
	return nil
}

// end takes the pair that was begun.
func (p *pair) end() error {
	switch id := p.id.String(); {
	case p.into == nil:
		return nil
	case p.into == &p.id:
		return fmt.Errorf("%.60q has no msgstr", id)
	default:
		if _, twice := p.of[id]; twice {
			return fmt.Errorf("%.60q comes twice", id)
		}
		p.of[id] = p.str.String()
	}
	p.id.Reset()
	p.str.Reset()
	p.into = nil
	return nil
}
