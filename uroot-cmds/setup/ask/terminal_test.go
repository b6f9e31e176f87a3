package ask

import (
	"io"
	"os"
	"strings"
	"testing"
)

// typist is somebody who types these lines.
type typist struct {
	lines []string
	said  strings.Builder
}

func (p *typist) Say(text string) { p.said.WriteString(text) }

func (p *typist) Line(prompt string) (string, error) {
	p.said.WriteString(prompt)
	if len(p.lines) == 0 {
		return "", io.ErrUnexpectedEOF
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
	p.said.WriteString(line + "\n")
	return line, nil
}

func (p *typist) Secret(prompt string) ([]byte, error) {
	p.said.WriteString(prompt + "\n")
	if len(p.lines) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	line := p.lines[0]
	p.lines = p.lines[1:]
	return []byte(line), nil
}

// A line is read to its end and not further: what follows may be for somebody else.
func TestConsole(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var out strings.Builder
	c := &Console{In: r, Out: &out}
	one, err1 := c.Line("first: ")
	two, err2 := c.Line("second: ")
	_, err3 := c.Line("third: ")
	if one != "one" || two != "two" || err1 != nil || err2 != nil || err3 == nil || out.String() != "first: second: third: " || c.IsTerminal() {
		t.Errorf("%q %v, %q %v, %v, %q", one, err1, two, err2, err3, &out)
	}
}
