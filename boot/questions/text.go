package questions

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/words"
)

// A page of choices: a console has 25 lines of 80 columns, and what has left it at the top is gone.
const rows, columns = 20, 79

// Matching are the choices that have a word in them, in whatever case.
func Matching(all []Choice, word string) (found []Choice) {
	word = strings.ToLower(word)
	for _, c := range all {
		if strings.Contains(strings.ToLower(c.Name+" "+c.Text), word) {
			found = append(found, c)
		}
	}
	return found
}

// page is a page of the choices, in columns where they have no text, and where the next page
// begins: 0 after the last.
func page(l words.Language, found []Choice, word string, from int) (text string, next int) {
	wide, each := 0, columns // of a name, and of a choice
	for _, c := range found {
		wide = max(wide, utf8.RuneCountInString(c.Name))
	}
	if !slices.ContainsFunc(found, func(c Choice) bool { return c.Text != "" }) {
		each = min(wide+2, columns)
	}
	var b strings.Builder
	part := found[from:min(from+rows*(columns/each), len(found))]
	for i, c := range part {
		switch last := (i+1)%(columns/each) == 0 || i == len(part)-1; {
		case c.Text != "":
			fmt.Fprintf(&b, "  %-20s %s\n", c.Name, c.Text)
		case last:
			fmt.Fprintf(&b, "  %s\n", c.Name)
		default:
			fmt.Fprintf(&b, "  %-*s", wide, c.Name)
		}
	}
	text = plain(b.String())
	next = from + len(part)
	switch more := len(found) - next; {
	case len(found) == 0:
		return l.Say(words.AskNothingHasLine, word), 0
	case more > 0:
		return text + l.Say(words.AskMore, more), next
	}
	return text, 0
}

// plain is a text of the image without what a terminal might obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
