package screen

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

// setUp asks what the first start would ask, where there is something to ask, and goes on to the
// checks.
func (u *ui) setUp(d install.Disk, choice install.Choice) {
	c := u.backend.Choices(choice)
	if c == nil {
		u.check(d, choice)
		return
	}
	s := &setup{ui: u, interview: questions.NewInterview(c, u.offered(c)), disk: d, choice: choice}
	s.ask()
}

// A setup is the questions while they are shown.
type setup struct {
	*ui
	interview *questions.Interview
	disk      install.Disk
	choice    install.Choice
}

// ask shows the page of the question that is next.
func (s *setup) ask() {
	q := s.interview.Question()
	switch {
	case q == nil:
		s.summary()
	case q.Secret():
		s.password(q, nil, "")
	case len(q.Choices) > 0:
		s.choose(q)
	default:
		s.line(q)
	}
}

// other does what the keys do that each page has, and reports whether it was one.
func (s *setup) other(key tcell.Key) bool {
	switch key {
	case tcell.KeyTab:
		s.interview.Leave()
		s.ask()
	case tcell.KeyEscape:
		if s.interview.Back() {
			s.ask()
		} else {
			s.back()
		}
	default:
		return false
	}
	return true
}

// heading is a page's title: the question, without what only a line needs.
func heading(l words.Language, q *questions.Question) string {
	if q.Title.IsZero() {
		return l.Say(words.AskNewSystem, q.Text)
	}
	return l.Say(words.AskNewSystem, q.Title)
}

// field is one that text is typed into.
func field(label string) *tview.InputField {
	return tview.NewInputField().SetLabel(tview.Escape(label)).SetFieldTextColor(tcell.ColorDefault).SetFieldBackgroundColor(tcell.ColorDefault)
}

// choose shows a list, of which those stay that have in them what is typed.
func (s *setup) choose(q *questions.Question) {
	var found []questions.Choice
	var list *tview.List
	box := tview.NewFlex().SetDirection(tview.FlexRow)
	fill := func(word string) {
		found, list = questions.Matching(q.Choices, strings.TrimSpace(word)), nil
		box.Clear()
		if len(found) == 0 {
			box.AddItem(text("%s", s.Say(words.AskNothingHas, word)), 0, 1, false)
			return
		}
		var lines []line
		for _, c := range found {
			lines = append(lines, line{text: strings.TrimSpace(fmt.Sprintf("%-20s %s", c.Name, c.Text))})
		}
		now := max(0, slices.IndexFunc(found, func(c questions.Choice) bool { return c.Name == q.ByEnter }))
		list = s.list(lines, now, nil, nil, func(int) {}).ShowSecondaryText(false)
		box.AddItem(list, 0, 1, false)
	}
	fill("")
	input := field(s.Text(words.AskFind)).SetChangedFunc(fill)
	input.SetInputCapture(func(key *tcell.EventKey) *tcell.EventKey {
		switch key.Key() {
		case tcell.KeyUp, tcell.KeyDown, tcell.KeyPgUp, tcell.KeyPgDn:
			if list != nil {
				list.InputHandler()(key, func(tview.Primitive) {})
			}
			return nil
		case tcell.KeyEnter:
			if list != nil {
				s.take(found[list.GetCurrentItem()].Name)
			}
			return nil
		}
		if s.other(key.Key()) {
			return nil
		}
		return key
	})
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(input, 2, 0, true).AddItem(box, 0, 1, false)
	s.show("setup", s.frame(heading(s.Language, q), s.Text(words.AskChooseKeys), page), input)
}

// take takes an answer that is a choice.
func (s *setup) take(answer string) {
	if _, err := s.interview.Answer(answer); err != nil {
		s.end(err, nil)
		return
	}
	s.ask()
}

// line shows a field, and what was wrong with what was typed into it.
func (s *setup) line(q *questions.Question) {
	label := s.Line(q.Text) + ": "
	if q.ByEnter != "" {
		label = fmt.Sprintf("%s [%s]: ", s.Line(q.Text), q.Shown(s.Language))
	}
	wrong := text("")
	input := field(label)
	input.SetInputCapture(func(key *tcell.EventKey) *tcell.EventKey {
		switch {
		case key.Key() == tcell.KeyEnter:
			typed := strings.TrimSpace(input.GetText())
			if typed == "" {
				typed = q.ByEnter
			}
			if _, err := s.interview.Answer(typed); err != nil {
				wrong.SetText(s.Error(err))
				input.SetText("")
				return nil
			}
			s.ask()
			return nil
		case s.other(key.Key()):
			return nil
		}
		return key
	})
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(input, 2, 0, true).AddItem(wrong, 0, 1, false)
	s.show("setup", s.frame(heading(s.Language, q), s.Text(words.AskKeys), page), input)
}

// maxTyped is how much of a password is kept, in bytes; answers.Password refuses one that long.
const maxTyped = 600

// password asks for a password, which is shown as stars, and then once more; before is what was
// typed the first time. A field would keep it in strings, which nobody could erase.
func (s *setup) password(q *questions.Question, before []byte, wrong string) {
	typed := make([]byte, 0, maxTyped+utf8.UTFMax)
	view := tview.NewTextView().SetWordWrap(true)
	prompt, says := s.Line(q.Text), s.typedHere()
	if before != nil {
		prompt, says = s.Text(words.AskOnceMore), ""
	}
	draw := func() {
		view.SetText(strings.TrimSpace(fmt.Sprintf("%s: %s_\n\n%s\n\n%s", prompt, strings.Repeat("*", utf8.RuneCount(typed)), wrong, says)))
	}
	draw()
	view.SetInputCapture(func(key *tcell.EventKey) *tcell.EventKey {
		switch key.Key() {
		case tcell.KeyRune:
			if len(typed) < maxTyped {
				typed = utf8.AppendRune(typed, key.Rune())
			}
		case tcell.KeyBackspace, tcell.KeyBackspace2:
			_, size := utf8.DecodeLastRune(typed)
			clear(typed[len(typed)-size:])
			typed = typed[:len(typed)-size]
		case tcell.KeyEnter:
			s.typed(q, before, typed)
			return nil
		case tcell.KeyTab, tcell.KeyEscape:
			clear(typed)
			clear(before)
			s.other(key.Key())
			return nil
		}
		draw()
		return nil
	})
	s.show("setup", s.frame(heading(s.Language, q), s.Text(words.AskKeys), view), view)
}

// typed takes a password that was typed once or, with what was typed before, twice.
func (s *setup) typed(q *questions.Question, before, typed []byte) {
	err := answers.Password(typed)
	switch {
	case before == nil && err == nil:
		s.password(q, typed, "")
		return
	case before == nil:
		clear(typed)
		s.password(q, nil, s.Error(err))
		return
	}
	same := bytes.Equal(before, typed)
	clear(typed)
	if !same {
		clear(before)
		s.password(q, nil, s.Text(words.AskNotSame))
		return
	}
	if err := s.interview.Password(before); err != nil {
		clear(before)
		s.end(err, nil)
		return
	}
	s.ask()
}

// summary shows the answers.
func (s *setup) summary() {
	a := s.interview.Answers()
	view := text("%s\n%s", a.SummaryIn(s.Language), s.Text(words.InNothingYet))
	view.SetInputCapture(func(key *tcell.EventKey) *tcell.EventKey {
		switch {
		case key.Key() == tcell.KeyEnter:
			if err := s.backend.SetUp(a); err != nil {
				s.end(err, nil)
				return nil
			}
			s.check(s.disk, s.choice)
		case key.Key() == tcell.KeyEscape:
			s.other(key.Key())
		default:
			return key
		}
		return nil
	})
	s.show("setup", s.frame(s.Text(words.AskIsThisRight), s.Text(words.AskRightKeys), view), view)
}
