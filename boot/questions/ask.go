package questions

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/words"
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

// Later is what is typed for that, and leave what is typed to leave one question for the
// first start.
const (
	Later = "later"
	leave = "."
)

// A Person is asked, a line at a time.
type Person struct {
	Terminal Terminal
	Choices  *Choices
	// Keyboard has a layout take effect at once, so that a password is typed on it. It is
	// nil in an installer, whose own keyboard stays as it is.
	Keyboard func(layout string) error
	// Language is what the person reads.
	Language words.Language
	// Leaves: a question can be left for the first start, as in an installer.
	Leaves bool
}

// Ask returns what the person answered and agreed to, beside what is given; see NewInterview.
// Of an account it has the password, which the caller clears.
func (p *Person) Ask(given *answers.Answers) (*answers.Answers, error) {
	i := NewInterview(p.Choices, given)
	if i.Question() == nil {
		return i.Answers(), nil
	}
	p.Terminal.Say(p.Language.Text(map[bool]string{false: words.AskWelcome, true: words.AskWelcomeInstaller}[p.Leaves]))
	for {
		if err := p.questions(i); err != nil {
			Clear(&i.answers)
			return nil, err
		}
		a := i.Answers()
		p.Terminal.Say("\n" + a.SummaryIn(p.Language) + "\n")
		yes, err := p.Yes(words.Fixed(words.AskRight), true)
		if yes && err == nil {
			return a, nil
		}
		i.Begin()
		if err != nil {
			return nil, err
		}
		p.say(words.AskAgain)
	}
}

// say says a text of the catalogue.
func (p *Person) say(format string, args ...any) { p.Terminal.Say(p.Language.Say(format, args...)) }

func (p *Person) questions(i *Interview) error {
	for q := i.Question(); q != nil; q = i.Question() {
		if err := p.one(i, q); err != nil {
			return err
		}
	}
	if !p.Choices.Accounts {
		p.say(words.AskNoAccounts)
	}
	return nil
}

// one asks one question of an interview.
func (p *Person) one(i *Interview, q *Question) error {
	if q.Secret() {
		typed, err := p.password(q)
		switch {
		case err != nil:
			return err
		case typed == nil:
			i.Leave()
			return nil
		}
		return i.Password(typed)
	}
	answer, err := p.Put(q)
	switch {
	case errors.Is(err, errLeft):
		i.Leave()
		return nil
	case err != nil:
		return err
	}
	if _, err := i.Answer(answer); err != nil {
		return err
	}
	if q.Key != answers.KeyKeyboard || p.Keyboard == nil {
		return nil
	}
	if err := p.Keyboard(answer); err != nil {
		p.say(words.AskKeyboardUnset, err)
	}
	return nil
}

// errLeft says that a question is left for the first start.
var errLeft = errors.New("left for the first start")

// Put asks a question until there is an answer that can be taken.
func (p *Person) Put(q *Question) (string, error) {
	prompt := p.Language.Line(q.Text) + ": "
	if q.ByEnter != "" {
		prompt = fmt.Sprintf("%s [%s]: ", p.Language.Line(q.Text), q.Shown(p.Language))
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
		case line == Later:
			return "", ErrLater
		case line == leave && p.Leaves && q.Key != "":
			return "", errLeft
		case list && len(q.Choices) > 0:
			if word != listed {
				listed, next = word, 0
			}
			word = strings.TrimSpace(word)
			var text string
			text, next = page(p.Language, Matching(q.Choices, word), word, next)
			p.Terminal.Say(text)
			continue
		case line == "":
			line = q.ByEnter
		}
		answer, err := q.Take(line)
		if err == nil {
			return answer, nil
		}
		p.Terminal.Say(p.Language.Error(err) + "\n")
	}
}

// Yes asks a question that is answered by yes or no.
func (p *Person) Yes(text words.Line, byEnter bool) (bool, error) {
	answer, err := p.Put(YesOrNo(text, byEnter))
	return answer == "yes", err
}

// Password asks for an account's password again, twice. The caller clears it.
func (p *Person) Password(name string) ([]byte, error) {
	again := *p
	again.Leaves = false
	return again.password(&Question{Text: PasswordOf(name)})
}

// password asks for a password, twice; nil leaves it for the first start. The caller clears it.
func (p *Person) password(q *Question) ([]byte, error) {
	prompt := p.Language.Line(q.Text) + ": "
	if p.Leaves {
		prompt = p.Language.Say(words.AskEnterLater, p.Language.Line(q.Text))
	}
	for {
		one, err := p.Terminal.Secret(prompt)
		if err != nil {
			return nil, err
		}
		if p.Leaves && len(one) == 0 {
			return nil, nil
		}
		if err := answers.Password(one); err != nil {
			clear(one)
			p.Terminal.Say(p.Language.Error(err) + "\n")
			continue
		}
		two, err := p.Terminal.Secret(p.Language.Text(words.OnceMore))
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
		p.say(words.AskNotSameLine)
	}
}
