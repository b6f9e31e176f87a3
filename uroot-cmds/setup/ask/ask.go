// Package ask asks a person for what a machine has to know at its first start.
//
// It writes nothing on the machine. It takes no answer that the image cannot follow: it
// says why, and asks again.
package ask

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/answers"
	"halogenos.internal/uroot-cmds/setup/steps"
)

// A Terminal is where somebody is asked.
type Terminal interface {
	// Say writes a text.
	Say(text string)
	// Line asks for a line, without its end.
	Line(prompt string) (string, error)
	// Secret asks for a line that is not shown; the caller clears it.
	Secret(prompt string) ([]byte, error)
}

// ErrLater says that the person wants to be asked at another time.
var ErrLater = errors.New("later")

// later is what is typed for that.
const later = "later"

// A page of choices: a console has 25 lines of 80 columns, and what has left it at the top is gone.
const rows, columns = 20, 79

const welcome = `
Some questions about this machine. Enter takes what stands in [brackets];
? lists what there is, and ?word what has the word in it. Nothing is changed
before the end, but for the keyboard. Type later to leave all as it is; at a
first start the next one asks again.

`

// A Person is asked.
type Person struct {
	Terminal Terminal
	Facts    *steps.Facts
	// Keyboard has a layout take effect at once, so that a password is typed on it.
	Keyboard func(layout string) error
}

// Ask returns what the person answered and agreed to. Of an account it has the password,
// which the caller clears.
func (p *Person) Ask() (*answers.Answers, error) {
	p.Terminal.Say(welcome)
	for {
		a, err := p.questions()
		if err != nil {
			return nil, err
		}
		p.Terminal.Say("\n" + a.Summary() + "\n")
		yes, err := p.yes("Is this right?", true)
		if yes && err == nil {
			return a, nil
		}
		Clear(a)
		if err != nil {
			return nil, err
		}
		p.Terminal.Say("\nOnce more, then.\n\n")
	}
}

// Clear erases a password that was typed.
func Clear(a *answers.Answers) {
	if a.Account != nil {
		clear(a.Account.Typed)
	}
}

func (p *Person) questions() (*answers.Answers, error) {
	a := &answers.Answers{Version: answers.Version}
	for _, ask := range []func(*answers.Answers) error{p.language, p.keyboard, p.zone, p.hostName, p.updates, p.account} {
		if err := ask(a); err != nil {
			Clear(a)
			return nil, err
		}
	}
	return a, nil
}

// choice is a thing that can be chosen.
type choice struct{ name, text string }

// A question is one with an answer of a line.
type question struct {
	text    string
	byEnter string // what Enter takes; "" where something must be typed
	choices []choice
	// take checks an answer and returns what is meant.
	take func(string) (string, error)
}

// ask asks until there is an answer that can be taken.
func (p *Person) ask(q question) (string, error) {
	prompt := q.text + ": "
	if q.byEnter != "" {
		prompt = fmt.Sprintf("%s [%s]: ", q.text, q.byEnter)
	}
	listed, next := "", 0 // the word that was last listed, and where its next page begins
	for {
		line, err := p.Terminal.Line(prompt)
		if err != nil {
			return "", err
		}
		line = strings.TrimSpace(line)
		word, list := strings.CutPrefix(line, "?")
		switch {
		case line == later:
			return "", ErrLater
		case list && len(q.choices) > 0:
			if word != listed {
				listed, next = word, 0
			}
			next = p.list(q.choices, strings.TrimSpace(word), next)
			continue
		case line == "":
			line = q.byEnter
		}
		answer, err := q.take(line)
		if err == nil {
			return answer, nil
		}
		p.Terminal.Say(err.Error() + "\n")
	}
}

// list shows a page of the choices that have a word in them, in columns where they have no
// text, and returns where the next page begins.
func (p *Person) list(all []choice, word string, from int) (next int) {
	var found []choice
	wide, each := 0, columns // of a name, and of a choice
	for _, c := range all {
		if strings.Contains(strings.ToLower(c.name+" "+c.text), strings.ToLower(word)) {
			found = append(found, c)
			wide = max(wide, utf8.RuneCountInString(c.name))
		}
	}
	if !slices.ContainsFunc(found, func(c choice) bool { return c.text != "" }) {
		each = min(wide+2, columns)
	}
	var b strings.Builder
	page := found[from:min(from+rows*(columns/each), len(found))]
	for i, c := range page {
		switch last := (i+1)%(columns/each) == 0 || i == len(page)-1; {
		case c.text != "":
			fmt.Fprintf(&b, "  %-20s %s\n", c.name, c.text)
		case last:
			fmt.Fprintf(&b, "  %s\n", c.name)
		default:
			fmt.Fprintf(&b, "  %-*s", wide, c.name)
		}
	}
	text := plain(b.String())
	next = from + len(page)
	switch more := len(found) - next; {
	case len(found) == 0:
		text = fmt.Sprintf("nothing there has %q in it\n", word)
	case more > 0:
		text += fmt.Sprintf("  and %d more: the same again lists the next, ?word those with the word\n", more)
	default:
		next = 0
	}
	p.Terminal.Say(text)
	return next
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

// among takes a choice by its name, in whatever case.
func among(all []choice, what string) func(string) (string, error) {
	return func(line string) (string, error) {
		for _, c := range all {
			if strings.EqualFold(c.name, line) {
				return c.name, nil
			}
		}
		return "", fmt.Errorf("%.60q is not %s that this system has: ? lists them", line, what)
	}
}

// yes asks a question that is answered by yes or no.
func (p *Person) yes(text string, byEnter bool) (bool, error) {
	word := "no"
	if byEnter {
		word = "yes"
	}
	answer, err := p.ask(question{text: text, byEnter: word, take: func(line string) (string, error) {
		switch strings.ToLower(line) {
		case "y", "yes":
			return "yes", nil
		case "n", "no":
			return "no", nil
		}
		return "", errors.New("type yes or no")
	}})
	return answer == "yes", err
}

func (p *Person) language(a *answers.Answers) (err error) {
	if len(p.Facts.Locales) < 2 {
		return nil
	}
	var all []choice
	for _, l := range p.Facts.Locales {
		all = append(all, choice{name: l})
	}
	byEnter := p.Facts.Language()
	if byEnter == "" {
		byEnter = p.Facts.Locales[0]
	}
	of := among(all, "a language")
	a.Language, err = p.ask(question{text: "Language, such as " + example(p.Facts.Locales), byEnter: byEnter, choices: all, take: func(line string) (string, error) {
		// Nobody types .UTF-8 gladly.
		if found, err := of(line + ".UTF-8"); err == nil {
			return found, nil
		}
		return of(line)
	}})
	return err
}

// example is a language that is one: of those that many know, or the first.
func example(all []string) string {
	if slices.Contains(all, "en_US.UTF-8") {
		return "en_US"
	}
	i := slices.IndexFunc(all, func(l string) bool { return !strings.HasPrefix(l, "C.") })
	name, _, _ := strings.Cut(all[max(i, 0)], ".")
	return name
}

func (p *Person) keyboard(a *answers.Answers) (err error) {
	if len(p.Facts.Layouts) == 0 {
		return nil
	}
	var all []choice
	for _, l := range p.Facts.Layouts {
		all = append(all, choice{l.Name, l.Text})
	}
	q := question{text: "Keyboard, such as us or de", byEnter: p.Facts.DefaultKeyboard(a.Language), choices: all, take: among(all, "a keyboard layout")}
	if a.Keyboard, err = p.ask(q); err != nil {
		return err
	}
	if err := p.Keyboard(a.Keyboard); err != nil {
		p.Terminal.Say(fmt.Sprintf("the keyboard could not be set: %v\n", err))
	}
	return nil
}

func (p *Person) zone(a *answers.Answers) (err error) {
	if len(p.Facts.Zones) == 0 {
		return nil
	}
	var all []choice
	for _, z := range p.Facts.Zones {
		all = append(all, choice{name: z.Name})
	}
	of := among(all, "a time zone")
	a.TimeZone, err = p.ask(question{text: "Time zone, such as Europe/Berlin", byEnter: p.Facts.DefaultZone(a.Language), choices: all, take: func(line string) (string, error) {
		return of(strings.ReplaceAll(line, " ", "_"))
	}})
	return err
}

func (p *Person) hostName(a *answers.Answers) (err error) {
	a.HostName, err = p.ask(question{text: "Name of this machine", byEnter: p.Facts.DefaultHostName(), take: func(line string) (string, error) {
		line = strings.ToLower(line)
		return line, answers.HostName(line)
	}})
	return err
}

func (p *Person) updates(a *answers.Answers) error {
	if p.Facts.Updates == steps.Unknown {
		return nil
	}
	yes, err := p.yes("Shall new releases be fetched by themselves?", p.Facts.Updates == steps.On)
	a.AutomaticUpdates = &yes
	return err
}

// none is what is typed for no account.
const none = "-"

func (p *Person) account(a *answers.Answers) error {
	if !p.Facts.Accounts() {
		p.Terminal.Say("This system lacks useradd and its like: no account is made.\n")
		return nil
	}
	full, err := p.ask(question{text: "Your name in full, which may be empty", take: func(line string) (string, error) {
		return line, answers.FullName(line)
	}})
	if err != nil {
		return err
	}
	name, err := p.ask(question{text: "Name of your account, or - for none", byEnter: short(full, p.Facts), take: func(line string) (string, error) {
		if line == none {
			return line, nil
		}
		if err := answers.UserName(line); err != nil {
			return "", err
		}
		return line, steps.Free(line, p.Facts)
	}})
	if err != nil || name == none {
		return err
	}
	a.Account = &answers.Account{Name: name, FullName: full}
	a.Account.Typed, err = p.Password(name)
	return err
}

// short is a name for an account that is made of the first word of a person's; "" where
// none can be.
func short(full string, f *steps.Facts) string {
	word, _, _ := strings.Cut(strings.ToLower(full), " ")
	if answers.UserName(word) != nil || steps.Free(word, f) != nil {
		return ""
	}
	return word
}

// Password asks for an account's password, twice. The caller clears it.
func (p *Person) Password(name string) ([]byte, error) {
	for {
		one, err := p.Terminal.Secret("Password of " + name + " (it is not shown): ")
		if err != nil {
			return nil, err
		}
		if err := answers.Password(one); err != nil {
			clear(one)
			p.Terminal.Say(err.Error() + "\n")
			continue
		}
		two, err := p.Terminal.Secret("Once more: ")
		if err != nil {
			clear(one)
			return nil, err
		}
		same := bytes.Equal(one, two)
		clear(two)
		if same {
			return one, nil
		}
		clear(one)
		p.Terminal.Say("these are not the same\n")
	}
}
