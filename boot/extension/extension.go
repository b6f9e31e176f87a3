// Package extension is what a machine has of its release's extensions: where the root
// partition keeps their files and the choice which of them are on, what a boot opens by
// that and what it leaves out, and what it measures.
//
// It refuses to know an extension that is not in the running UKI's own list
// ([contract.ParseExtensions]): a name in the choice opens nothing by itself, and a file
// counts by what the list says that it holds.
package extension

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/verity"
)

// Directory is where the files and the choice are, in the directory that the boot and the
// running system share.
const Directory = "extensions"

// ChoiceName is the choice's file name in Directory.
const ChoiceName = "enabled.json"

// Bounds of the choice: in bytes, and of the names in it. A release may come that has an
// extension which this one lacks, so that it may name more than a release has.
const (
	MaxChoice  = 16 << 10
	MaxEnabled = 2 * contract.MaxExtensions
)

// choiceFormat is the number of the choice's format; another is refused.
const choiceFormat = 1

// FileName is the name of an extension's file in Directory. It goes by content, so that the
// releases in both slots find their own, and an update replaces none that is in use.
func FileName(root verity.Root) string { return root.String() + ".raw" }

// A Choice is which extensions the machine has enabled, by name and for whatever release
// runs. The zero value enables none.
type Choice struct{ enabled []string }

type encodedChoice struct {
	Format  int      `json:"format"`
	Enabled []string `json:"enabled"`
}

// Enabled returns the names, sorted.
func (c Choice) Enabled() []string { return slices.Clone(c.enabled) }

// Has reports whether an extension is enabled.
func (c Choice) Has(name string) bool { return slices.Contains(c.enabled, name) }

// With is the choice with one more enabled.
func (c Choice) With(name string) (Choice, error) {
	if c.Has(name) {
		return c, nil
	}
	return newChoice(append(c.Enabled(), name))
}

// Without is the choice without one.
func (c Choice) Without(name string) Choice {
	return Choice{slices.DeleteFunc(c.Enabled(), func(n string) bool { return n == name })}
}

func newChoice(names []string) (Choice, error) {
	if len(names) > MaxEnabled {
		return Choice{}, fmt.Errorf("%d extensions are enabled, at most %d can be", len(names), MaxEnabled)
	}
	names = slices.Sorted(slices.Values(names))
	for i, n := range names {
		switch {
		case !contract.ValidID(n):
			return Choice{}, fmt.Errorf("extension %.80q: want a name of 1 to 64 of a-z, 0-9 and '-', starting with a letter", n)
		case i > 0 && n == names[i-1]:
			return Choice{}, fmt.Errorf("extension %s is enabled twice", n)
		}
	}
	return Choice{names}, nil
}

// Encode returns the choice as its file has it.
func (c Choice) Encode() []byte {
	names := c.Enabled()
	if names == nil {
		names = []string{}
	}
	text, _ := json.Marshal(encodedChoice{choiceFormat, names}) // strings alone
	return append(text, '\n')
}

// ParseChoice reads the choice's file.
func ParseChoice(text []byte) (Choice, error) {
	if len(text) > MaxChoice {
		return Choice{}, fmt.Errorf("the list of enabled extensions has %d bytes, more than %d", len(text), MaxChoice)
	}
	var e encodedChoice
	err := strictjson.Decode(text, &e)
	if err == nil && e.Format != choiceFormat {
		err = fmt.Errorf("format %d, want %d", e.Format, choiceFormat)
	}
	if err == nil && e.Enabled == nil {
		err = errors.New(`no list "enabled"`)
	}
	var c Choice
	if err == nil {
		c, err = newChoice(e.Enabled)
	}
	if err != nil {
		return Choice{}, fmt.Errorf("the list of enabled extensions: %w", err)
	}
	return c, nil
}

// A State is one extension of the running release, and what has come of it in this boot.
type State struct {
	contract.Extension
	Enabled bool `json:"enabled"`
	// Opened: it is part of the running system.
	Opened bool `json:"opened"`
	// LeftOut is why it is not part of the running system although it is enabled, or may
	// be; "" where it is, or nobody wants it.
	LeftOut string `json:"left_out,omitempty"`
	// Measured: PCR 13 has it (Event).
	Measured bool `json:"measured,omitempty"`
}

// Boot is what a boot makes of a release's extensions.
type Boot struct {
	// States are those of the release, sorted by name: the order in which they are opened
	// and measured. A later one lies over an earlier one, as systemd-sysext(8) has it.
	States []State
	// Unknown are names that are enabled, and that the running release lacks.
	Unknown []string
}

// Begin decides which extensions a boot opens: those of the release that the machine has
// enabled. unreadable is why the choice is not known; nil where it is. None is opened then,
// and one that is essential counts as left out, since it may be enabled.
func Begin(list []contract.Extension, c Choice, unreadable error) *Boot {
	b := new(Boot)
	for _, e := range list {
		s := State{Extension: e, Enabled: unreadable == nil && c.Has(e.Name)}
		if unreadable != nil {
			s.LeftOut = fmt.Sprintf("whether it is enabled is not known: %v", unreadable)
		}
		b.States = append(b.States, s)
	}
	slices.SortFunc(b.States, func(x, y State) int { return strings.Compare(x.Name, y.Name) })
	if unreadable == nil {
		for _, name := range c.enabled {
			if !slices.ContainsFunc(list, func(e contract.Extension) bool { return e.Name == name }) {
				b.Unknown = append(b.Unknown, name)
			}
		}
	}
	return b
}

// Calls reports whether there is anything to do or to say.
func (b *Boot) Calls() bool {
	return len(b.Unknown) > 0 || slices.ContainsFunc(b.States, func(s State) bool { return s.Enabled || s.LeftOut != "" })
}

// Opens reports whether an extension is part of the system. It is none of a nil Boot's.
func (b *Boot) Opens() bool {
	return b != nil && slices.ContainsFunc(b.States, func(s State) bool { return s.Opened })
}

// Lines say what is left out, and why, a line each.
func (b *Boot) Lines() (lines []string) {
	for _, s := range b.States {
		if s.LeftOut != "" {
			lines = append(lines, fmt.Sprintf("extension %s is left out: %s", s.Name, s.LeftOut))
		}
	}
	for _, name := range b.Unknown {
		lines = append(lines, fmt.Sprintf("extension %s is enabled, and this release has none of this name", name))
	}
	return lines
}

// Stops is why the boot may not go on: an essential extension is left out. It is nil where
// the boot may.
func (b *Boot) Stops() error {
	var reasons []string
	for _, s := range b.States {
		if s.Essential && s.LeftOut != "" {
			reasons = append(reasons, fmt.Sprintf("extension %s is essential, and is left out: %s", s.Name, s.LeftOut))
		}
	}
	if reasons == nil {
		return nil
	}
	return errors.New(strings.Join(reasons, "; "))
}
