package ask

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// A Console is a Terminal of two files. The kernel edits the lines.
type Console struct {
	In  *os.File
	Out io.Writer
}

// IsTerminal reports whether somebody could be asked there.
func (c *Console) IsTerminal() bool { return term.IsTerminal(int(c.In.Fd())) }

// Say writes a text.
func (c *Console) Say(text string) { fmt.Fprint(c.Out, text) }

// maxLine is what a terminal gives at once, in bytes.
const maxLine = 4096

// Line asks for a line.
func (c *Console) Line(prompt string) (string, error) {
	c.Say(prompt)
	var line []byte
	// Not a byte more than the line: what follows may be a password.
	for b := make([]byte, 1); len(line) < maxLine; {
		switch _, err := io.ReadFull(c.In, b); {
		case errors.Is(err, io.EOF):
			return "", errors.New("the terminal was closed")
		case err != nil:
			return "", err
		case b[0] == '\n':
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", fmt.Errorf("a line of more than %d bytes", maxLine)
}

// Secret asks for a line that is not shown.
func (c *Console) Secret(prompt string) ([]byte, error) {
	c.Say(prompt)
	line, err := term.ReadPassword(int(c.In.Fd()))
	c.Say("\n")
	if errors.Is(err, io.EOF) {
		err = errors.New("the terminal was closed")
	}
	return line, err
}
