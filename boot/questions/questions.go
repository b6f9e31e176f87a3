package questions

import (
	"slices"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/words"
)

// A Choice is a thing that can be chosen.
type Choice struct{ Name, Text string }

// A Question is one with an answer of a line, or of a password.
type Question struct {
	// Key is what the answer is called in setup.json(5); several questions may have one.
	Key  string
	Text words.Line
	// Title is the question as a heading, where that is another; the zero value stands for Text.
	Title words.Line
	// ByEnter is what Enter takes; "" where something must be typed, or may be empty.
	ByEnter string
	Choices []Choice
	// Take checks an answer and returns what is meant. A password has none, and
	// answers.Password checks it.
	Take func(string) (string, error)

	yesOrNo bool
}

// Shown is what Enter takes, as it is shown in a language.
func (q *Question) Shown(l words.Language) string {
	if q.yesOrNo {
		return l.Text(q.ByEnter)
	}
	return q.ByEnter
}

// Secret reports whether the answer is a password: it is not shown, and typed twice.
func (q *Question) Secret() bool { return q.Take == nil }

// NoAccount is the name that stands for no account.
const NoAccount = "-"

// A topic is a question that may come, and what its answer does. ask returns nil where the
// image has no choice, or where an answer before makes it needless.
type topic struct {
	key string
	ask func(c *Choices, a *answers.Answers) *Question
	set func(a *answers.Answers, answer string)
}

// topics are all of them, in order.
var topics = []topic{
	{answers.KeyLanguage, language, func(a *answers.Answers, s string) { a.Language = s }},
	{answers.KeyKeyboard, keyboard, func(a *answers.Answers, s string) { a.Keyboard = s }},
	{answers.KeyTimeZone, timeZone, func(a *answers.Answers, s string) { a.TimeZone = s }},
	{answers.KeyHostName, hostName, func(a *answers.Answers, s string) { a.HostName = s }},
	{answers.KeyUpdates, updates, func(a *answers.Answers, s string) { yes := s == "yes"; a.AutomaticUpdates = &yes }},
	{answers.KeyAccount, fullName, func(a *answers.Answers, s string) { a.Account = &answers.Account{FullName: s} }},
	{answers.KeyAccount, userName, func(a *answers.Answers, s string) {
		if s == NoAccount {
			a.Account = nil
			return
		}
		a.Account.Name = s
	}},
	{answers.KeyAccount, password, nil},
}

// among takes a choice by its name, in whatever case. notThere is what is said of any other.
func among(all []Choice, notThere string) func(string) (string, error) {
	return func(line string) (string, error) {
		for _, c := range all {
			if strings.EqualFold(c.Name, line) {
				return c.Name, nil
			}
		}
		return "", words.Errorf(notThere, line)
	}
}

// YesOrNo is a question that is answered by yes or no, in any of the languages.
func YesOrNo(text words.Line, byEnter bool) *Question {
	word := words.AskNo
	if byEnter {
		word = words.AskYes
	}
	return &Question{Text: text, ByEnter: word, yesOrNo: true, Take: func(line string) (string, error) {
		if word := words.YesOrNoTyped(line); word != "" {
			return word, nil
		}
		return "", words.Errorf(words.AskYesOrNo)
	}}
}

func language(c *Choices, _ *answers.Answers) *Question {
	if len(c.Languages) < 2 {
		return nil
	}
	var all []Choice
	for _, l := range c.Languages {
		all = append(all, Choice{Name: l})
	}
	byEnter := c.Language
	if !slices.Contains(c.Languages, byEnter) {
		byEnter = c.Languages[0]
	}
	of := among(all, words.AskNoLanguage)
	return &Question{Text: words.Linef(words.AskLanguage, example(c.Languages)), Title: words.Fixed(words.AskLanguageTitle), ByEnter: byEnter, Choices: all, Take: func(line string) (string, error) {
		// Nobody types .UTF-8 gladly.
		if found, err := of(line + ".UTF-8"); err == nil {
			return found, nil
		}
		return of(line)
	}}
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

func keyboard(c *Choices, a *answers.Answers) *Question {
	if len(c.Keyboards) == 0 {
		return nil
	}
	var all []Choice
	for _, l := range c.Keyboards {
		all = append(all, Choice(l))
	}
	return &Question{Text: words.Fixed(words.AskKeyboard), Title: words.Fixed(words.AskKeyboardTitle), ByEnter: c.DefaultKeyboard(a.Language), Choices: all, Take: among(all, words.AskNoLayout)}
}

func timeZone(c *Choices, a *answers.Answers) *Question {
	if len(c.TimeZones) == 0 {
		return nil
	}
	var all []Choice
	for _, z := range c.TimeZones {
		all = append(all, Choice{Name: z.Name})
	}
	of := among(all, words.AskNoZone)
	return &Question{Text: words.Fixed(words.AskTimeZone), Title: words.Fixed(words.AskTimeZoneTitle), ByEnter: c.DefaultTimeZone(a.Language), Choices: all, Take: func(line string) (string, error) {
		return of(strings.ReplaceAll(line, " ", "_"))
	}}
}

func hostName(c *Choices, _ *answers.Answers) *Question {
	return &Question{Text: words.Fixed(words.AskHostName), ByEnter: c.DefaultHostName(), Take: func(line string) (string, error) {
		line = strings.ToLower(line)
		return line, answers.HostName(line)
	}}
}

func updates(c *Choices, _ *answers.Answers) *Question {
	if c.AutomaticUpdates == nil {
		return nil
	}
	return YesOrNo(words.Fixed(words.AskUpdates), *c.AutomaticUpdates)
}

func fullName(c *Choices, _ *answers.Answers) *Question {
	if !c.Accounts {
		return nil
	}
	return &Question{Text: words.Fixed(words.AskFullName), Take: func(line string) (string, error) {
		return line, answers.FullName(line)
	}}
}

func userName(c *Choices, a *answers.Answers) *Question {
	if a.Account == nil {
		return nil
	}
	return &Question{Text: words.Fixed(words.AskUserName), ByEnter: short(a.Account.FullName, c), Take: func(line string) (string, error) {
		if line == NoAccount {
			return line, nil
		}
		if err := answers.UserName(line); err != nil {
			return "", err
		}
		return line, c.Free(line)
	}}
}

// short is a name for an account that is made of the first word of a person's; "" where
// none can be.
func short(full string, c *Choices) string {
	word, _, _ := strings.Cut(strings.ToLower(full), " ")
	if answers.UserName(word) != nil || c.Free(word) != nil {
		return ""
	}
	return word
}

func password(_ *Choices, a *answers.Answers) *Question {
	if a.Account == nil {
		return nil
	}
	return &Question{Text: PasswordOf(a.Account.Name)}
}

// PasswordOf asks for an account's password.
func PasswordOf(name string) words.Line { return words.Linef(words.AskPassword, name) }
