package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/notes"
	"halogenos.internal/uroot-cmds/ota/machine"
)

const notesUsage = `usage: ota notes [--summary] [--json]

Says what the version that runs has brought, as its distributor says; ota check says
it of the one that is offered. The line at a login about it goes then.

  --summary  one line where a version runs whose notes nobody has read, for a login
`

func notesOf(_ context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	n, err := c.machine.News()
	if err != nil {
		return nil, err
	}
	if *c.summary {
		line := newsLine(n)
		if line != "" {
			fmt.Fprintln(c.out, line)
		}
		return n, c.machine.LeaveNews(line)
	}
	if n == nil {
		fmt.Fprintln(c.out, "nothing is known of what this version has brought")
		return n, nil
	}
	showNotes(c.out, n.Notes)
	if err := c.machine.NewsRead(); err != nil {
		c.screen.warn(err.Error())
		return n, nil
	}
	return n, c.machine.LeaveNews("")
}

// newsLine is what is said at a login; empty is nothing.
func newsLine(n *machine.News) string {
	switch {
	case n == nil || n.Read:
		return ""
	case n.Security:
		return fmt.Sprintf("This is version %s, after %s, and closes holes: `ota notes` says what is new.", n.Version, n.From)
	}
	return fmt.Sprintf("This is version %s, after %s: `ota notes` says what is new.", n.Version, n.From)
}

// showNotes says what releases bring. The text was checked: it cannot steer a terminal.
func showNotes(w io.Writer, all []notes.Release) {
	for _, r := range all {
		fmt.Fprintf(w, "\nversion %s", r.Version)
		if r.Date != 0 {
			fmt.Fprintf(w, " of %s", time.Unix(r.Date, 0).UTC().Format(time.DateOnly))
		}
		fmt.Fprintf(w, ", urgency %s", r.Urgency)
		if r.Security {
			fmt.Fprint(w, ", closes holes")
		}
		fmt.Fprintln(w)
		for _, p := range r.Text {
			if p.Paragraph != "" {
				wrap(w, "  ", "  ", p.Paragraph)
			}
			for i, item := range p.Items {
				mark := "  - "
				if p.Numbered {
					mark = fmt.Sprintf("  %d. ", i+1)
				}
				wrap(w, mark, strings.Repeat(" ", len(mark)), item)
			}
		}
		if len(r.Issues) > 0 {
			wrap(w, "  ", "  ", strings.Join(r.Issues, ", "))
		}
		if r.URL != "" {
			fmt.Fprintf(w, "  %s\n", r.URL)
		}
	}
}

const textWidth = 80

// wrap writes a text in lines, the first of which starts otherwise than the rest.
func wrap(w io.Writer, first, rest, text string) {
	line, empty := first, true
	for word := range strings.FieldsSeq(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > textWidth {
			fmt.Fprintln(w, line)
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(w, line)
}
