package etcmerge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/strictjson"
)

// ListPath is where an upper directory keeps the list of conflicts. It lies in the upper
// directory so that it belongs to the version, as the files do.
const ListPath = "halogen/changes.json"

const (
	// MaxList bounds the list in bytes.
	MaxList = 1 << 20
	// maxReason bounds a reason or a note in bytes.
	maxReason = 512
	// maxLeftOut bounds how many are listed that could not be carried over.
	maxLeftOut = 1000
)

// The numbers of the list's formats; a list with another is refused. plainList has nothing
// that was left out, so that releases which do not know of that can read it.
const (
	plainList = iota + 1
	leftOutList
)

// A List is what people are told about the merge that made an upper directory.
type List struct {
	From      contract.Version `json:"from,omitempty"` // 0 where it is not known
	To        contract.Version `json:"to"`
	Conflicts []Conflict       `json:"conflicts,omitempty"`
	Notes     []Note           `json:"notes,omitempty"`
	LeftOut   []LeftOut        `json:"leftOut,omitempty"`
	// More counts the conflicts, notes and what was left out that had no room.
	More int `json:"more,omitempty"`
}

// A Conflict is a file, or an entry of an account file, that both the image and this
// machine changed. This machine's is in effect.
type Conflict struct {
	Path   Name   `json:"path"`
	Entry  Name   `json:"entry,omitempty"` // the user, group or shell, in an account file
	Reason string `json:"reason"`
	// Since is the release that first brought it.
	Since contract.Version `json:"since"`
	// State has a digest of what this machine has. Once that is something else, somebody
	// has decided. It would let anyone who reads it try out what a secret file may hold:
	// the list is for root alone.
	State string `json:"state"`
	// LeftOut: the image's entry did not come in, for want of a number. The next merge
	// that has one takes it in.
	LeftOut bool `json:"leftOut,omitempty"`
	// Kept: somebody decided that this machine's stays.
	Kept bool `json:"kept,omitempty"`
}

// A Note says what a merge did that people may want to know.
type Note struct {
	Path Name   `json:"path"`
	Text string `json:"text"`
}

// A LeftOut is what a system's first start could not carry over, or not as it was. It
// stays on the list until somebody says that it has been seen ([List.KeepLeftOut]).
type LeftOut struct {
	// Path is whole, as /var/lib/x: it need not lie in the directory of the list.
	Path   Name   `json:"path"`
	Reason string `json:"reason"`
	// Since is the release whose first start left it out.
	Since contract.Version `json:"since"`
	// Lasts: it is not an event but a state, which each first start finds again for as long as
	// it is so.
	Lasts bool `json:"lasts,omitempty"`
	// Kept: somebody has seen it.
	Kept bool `json:"kept,omitempty"`
}

// same reports whether two say the same.
func (l LeftOut) same(other LeftOut) bool { return l.Path == other.Path && l.Reason == other.Reason }

// A Name is a path below the directory, or a name in an account file. It may hold any
// byte; in JSON a backslash is written \\ and a byte that is not UTF-8 \xNN.
type Name string

// MarshalText writes the name with its escapes.
func (n Name) MarshalText() ([]byte, error) {
	var out []byte
	for s := string(n); s != ""; {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			out = fmt.Appendf(out, `\x%02x`, s[0])
		case r == '\\':
			out = append(out, `\\`...)
		default:
			out = append(out, s[:size]...)
		}
		s = s[size:]
	}
	return out, nil
}

// UnmarshalText reads what MarshalText writes.
func (n *Name) UnmarshalText(text []byte) error {
	var out strings.Builder
	for s := string(text); s != ""; {
		plain, rest, escaped := strings.Cut(s, `\`)
		out.WriteString(plain)
		if !escaped {
			break
		}
		switch {
		case strings.HasPrefix(rest, `\`):
			out.WriteByte('\\')
			s = rest[1:]
		case len(rest) >= 3 && rest[0] == 'x':
			b, err := strconv.ParseUint(rest[1:3], 16, 8)
			if err != nil {
				return fmt.Errorf("name %q: %w", text, err)
			}
			out.WriteByte(byte(b))
			s = rest[3:]
		default:
			return fmt.Errorf(`name %q: want \\ or \xNN after a backslash`, text)
		}
	}
	*n = Name(out.String())
	return nil
}

// String returns the name for a terminal, quoted where it holds anything that could
// be taken for something else.
func (n Name) String() string {
	if s := string(n); s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r == utf8.RuneError || r == '"' || r == '\\' || !unicode.IsGraphic(r)
	}) {
		return s
	}
	return strconv.Quote(string(n))
}

// encodedList is a list with its format.
type encodedList struct {
	Format int `json:"format"`
	List
}

// ParseList reads a list.
func ParseList(text []byte) (List, error) {
	if len(text) > MaxList {
		return List{}, fmt.Errorf("list of changes: %d bytes, more than %d", len(text), MaxList)
	}
	var e encodedList
	err := strictjson.Decode(text, &e)
	if err == nil && e.Format != plainList && e.Format != leftOutList {
		err = fmt.Errorf("format %d, want %d or %d", e.Format, plainList, leftOutList)
	}
	if err == nil {
		err = e.complete()
	}
	if err != nil {
		return List{}, fmt.Errorf("list of changes: %w", err)
	}
	e.clean()
	return e.List, nil
}

// complete refuses a list without the releases that it is about: changed and written again,
// nobody could read it.
func (l List) complete() error {
	if l.To == 0 {
		return errors.New("it does not say of which release it is")
	}
	for _, c := range l.Conflicts {
		if c.Since == 0 {
			return fmt.Errorf("%s does not say since which release", c.Path)
		}
	}
	for _, o := range l.LeftOut {
		if o.Since == 0 {
			return fmt.Errorf("%s does not say since which release", o.Path)
		}
	}
	return nil
}

// clean makes all texts fit to be shown, and bounds what was left out.
func (l *List) clean() {
	for i := range l.Conflicts {
		l.Conflicts[i].Reason = clean(l.Conflicts[i].Reason)
	}
	for i := range l.Notes {
		l.Notes[i].Text = clean(l.Notes[i].Text)
	}
	if n := len(l.LeftOut) - maxLeftOut; n > 0 {
		l.LeftOut, l.More = l.LeftOut[:maxLeftOut], l.More+n
	}
	for i := range l.LeftOut {
		l.LeftOut[i].Reason = clean(l.LeftOut[i].Reason)
	}
}

// Encode returns the list's text. What has no room is counted: notes first, what was left
// out last.
func (l List) Encode() ([]byte, error) {
	l.Conflicts, l.Notes, l.LeftOut = slices.Clone(l.Conflicts), slices.Clone(l.Notes), slices.Clone(l.LeftOut)
	l.clean()
	for {
		e := encodedList{plainList, l}
		if len(l.LeftOut) > 0 {
			e.Format = leftOutList
		}
		text, err := json.MarshalIndent(e, "", "\t")
		if err != nil {
			return nil, fmt.Errorf("list of changes: %w", err)
		}
		if len(text) < MaxList {
			return append(text, '\n'), nil
		}
		l.shorten(len(text))
	}
}

// shorten takes away some of a list whose text has this size.
func (l *List) shorten(size int) {
	before := len(l.Notes) + len(l.Conflicts) + len(l.LeftOut)
	switch conflicts := len(l.Conflicts); {
	case len(l.Notes) > 0:
		l.Notes = l.Notes[:len(l.Notes)/2]
	case conflicts > 0:
		l.Conflicts = l.Conflicts[:min(conflicts-1, conflicts*(MaxList/1024)/(size/1024))]
	default:
		l.LeftOut = l.LeftOut[:len(l.LeftOut)/2]
	}
	l.More += before - len(l.Notes) - len(l.Conflicts) - len(l.LeftOut)
}

// clean leaves what can be shown on a terminal, on one line, in maxReason bytes.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
	for len(s) > maxReason {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// Keep notes that somebody decided for this machine's file, in all conflicts of a
// path. It reports whether there were any.
func (l *List) Keep(path string) bool {
	found := false
	for i := range l.Conflicts {
		if l.Conflicts[i].Path == Name(path) {
			l.Conflicts[i].Kept, found = true, true
		}
	}
	return found
}

// KeepLeftOut notes that somebody has seen what was left out at a whole path. It reports
// whether there was anything.
func (l *List) KeepLeftOut(path string) bool {
	found := false
	for i := range l.LeftOut {
		if l.LeftOut[i].Path == Name(path) {
			l.LeftOut[i].Kept, found = true, true
		}
	}
	return found
}

// Unseen is what was left out and nobody has seen.
func (l List) Unseen() (out []LeftOut) {
	for _, o := range l.LeftOut {
		if !o.Kept {
			out = append(out, o)
		}
	}
	return out
}

// Undecided returns the conflicts of a list that are still to be decided, given the
// upper directory as it is now. One is decided when somebody said so ([List.Keep]), or
// when this machine's file or entry is not what it was: changed, removed, or the image's
// again.
func Undecided(ctx context.Context, l List, upper Tree) ([]Conflict, error) {
	r := reader{ctx: ctx}
	return r.undecided(l, &source{tree: upper, name: "the upper directory", upper: true})
}
