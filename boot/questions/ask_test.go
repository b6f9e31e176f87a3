package questions

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
)

// typist is somebody who types these lines.
type typist struct {
	t     *testing.T
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

func debian() *Choices {
	yes := true
	return &Choices{
		Version:   Version,
		Languages: []string{"C.UTF-8", "de_DE.UTF-8", "en_US.UTF-8"},
		Keyboards: []Layout{{"de", "German"}, {"de(nodeadkeys)", "German (no dead keys)"}, {"us", "English\x1b[2J (US)"}},
		TimeZones: []Zone{{"America/New_York", ""}, {"Etc/UTC", ""}, {"Europe/Berlin", "DE"}},
		HostName:  "localhost\n", Users: []string{"root"}, Groups: []string{"root", "sudo"}, Accounts: true, AutomaticUpdates: &yes,
	}
}

func ask(t *testing.T, c *Choices, lines ...string) (*answers.Answers, *typist, []string, error) {
	t.Helper()
	who := &typist{t: t, lines: lines}
	var layouts []string
	p := &Person{Terminal: who, Choices: c, Keyboard: func(l string) error {
		layouts = append(layouts, l)
		return nil
	}}
	a, err := p.Ask(nil)
	if len(who.lines) > 0 {
		t.Errorf("%q were not asked for", who.lines)
	}
	return a, who, layouts, err
}

// Somebody who takes what is offered types a language, a name, and a password.
func TestByEnter(t *testing.T) {
	a, who, layouts, err := ask(t, debian(), "de_de", "", "", "", "", "Alice Example", "", "secret", "secret", "")
	yes := true
	want := &answers.Answers{
		Version: 1, Language: "de_DE.UTF-8", Keyboard: "de", TimeZone: "Europe/Berlin", HostName: "computer", AutomaticUpdates: &yes,
		Account: &answers.Account{Name: "alice", FullName: "Alice Example", Typed: []byte("secret")},
	}
	if err != nil || !reflect.DeepEqual(a, want) || !reflect.DeepEqual(layouts, []string{"de"}) {
		t.Errorf("%+v, %v, layouts %q\n%s", a, err, layouts, &who.said)
	}
	said := who.said.String()
	for _, s := range []string{"Keyboard, such as us or de [de]: ", "Time zone, such as Europe/Berlin [Europe/Berlin]: ", "- for none [alice]: ", "  account    alice  Alice Example, who may become root\n", "Is this right? [yes]: "} {
		if !strings.Contains(said, s) {
			t.Errorf("nothing says %q:\n%s", s, said)
		}
	}
	if strings.Contains(said, "secret") {
		t.Errorf("the password is shown:\n%s", said)
	}
}

// What cannot be taken is asked for again, with the reason.
func TestAgain(t *testing.T) {
	a, who, _, err := ask(t, debian(),
		"klingon", "?", "en_US.UTF-8",
		"?", "?dead", "qwertz", "DE(NoDeadKeys)",
		"?zzz", "Berlin", "america/new york",
		"my computer", "localhost", "Kitchen",
		"perhaps", "NO",
		"a:b", "Root",
		"", "root", "sudo", "Alice", "alice",
		"", "a\tb", "one", "two", "secret", "secret",
		"no",
		// Once more.
		"", "", "", "", "", "", "-", "y")
	yes := true
	want := &answers.Answers{Version: 1, Language: "C.UTF-8", Keyboard: "us", TimeZone: "Etc/UTC", HostName: "computer", AutomaticUpdates: &yes}
	if err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, %v", a, err)
	}
	said := who.said.String()
	for _, s := range []string{
		`"klingon" is not a language that this system has`, "  de_DE.UTF-8 ", "  de(nodeadkeys)       German (no dead keys)\n", "  us                   English?[2J (US)\n", `"qwertz" is not a keyboard layout`,
		`nothing there has "zzz" in it`, `"Berlin" is not a time zone`, `"my computer" is not a host name`, "localhost is what every machine calls itself", "type yes or no",
		`"a:b" cannot be a full name`, "root is an account of the system", "sudo is a group of the system", `"Alice" is not an account's name`,
		"the password is empty", "the password has a control character", "these are not the same", "keyboard   de(nodeadkeys)", "time zone  America/New_York", "name       kitchen", "Once more, then.", "account    none",
	} {
		if !strings.Contains(said, s) {
			t.Errorf("nothing says %q:\n%s", s, said)
		}
	}
	if strings.ContainsRune(said, '\x1b') || strings.Contains(said, "secret") {
		t.Errorf("the terminal is told\n%q", said)
	}
}

// What the image has no choice of is not asked.
func TestNotAsked(t *testing.T) {
	a, who, layouts, err := ask(t, &Choices{Languages: []string{"C.UTF-8"}}, "box", "")
	if err != nil || !reflect.DeepEqual(a, &answers.Answers{Version: 1, HostName: "box"}) || layouts != nil {
		t.Errorf("%+v, %v\n%s", a, err, &who.said)
	}
}

// A console has 80 columns, 25 lines, and nothing that goes back: what there is comes a page at a
// time, and all of it.
func TestPages(t *testing.T) {
	f := debian()
	f.TimeZones, f.Keyboards = nil, nil
	for i := range 150 {
		f.TimeZones = append(f.TimeZones, Zone{Name: fmt.Sprintf("America/Argentina/ComodRivadav%02d", i)})
		f.Keyboards = append(f.Keyboards, Layout{Name: fmt.Sprintf("l%d", i), Text: "Layout"})
	}
	lines := []string{""}
	for range 9 { // eight pages, and the first again
		lines = append(lines, "?")
	}
	lines = append(lines, "?l14", "l14")
	for range 5 {
		lines = append(lines, "?")
	}
	_, who, _, err := ask(t, f, append(lines, "later")...)
	if !errors.Is(err, ErrLater) {
		t.Errorf("%v", err)
	}
	said := who.said.String()
	for line := range strings.Lines(said) {
		if len(line) > 80 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	for i, screen := range strings.Split(said, "such as") {
		if n := strings.Count(screen, "\n"); n > 23 {
			t.Errorf("screen %d has %d lines:\n%s", i, n, screen)
		}
	}
	for i := range 150 {
		want := 1
		if i < 20 { // of the first page
			want = 2
		}
		if i == 14 || i >= 140 { // of those with the word
			want++
		}
		if have := strings.Count(said, fmt.Sprintf("  l%d ", i)); have != want {
			t.Errorf("layout %d is listed %d times, want %d", i, have, want)
		}
		if zone := f.TimeZones[i].Name; !strings.Contains(said, zone) {
			t.Errorf("%s is not listed", zone)
		}
	}
}

func TestLater(t *testing.T) {
	for n := range 6 {
		lines := append([]string{"", "", "", "", "", ""}[:n], "later")
		if _, who, _, err := ask(t, debian(), lines...); !errors.Is(err, ErrLater) {
			t.Errorf("at question %d: %v\n%s", n, err, &who.said)
		}
	}
	if _, _, _, err := ask(t, debian(), "", ""); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the terminal ends: %v", err)
	}
}
